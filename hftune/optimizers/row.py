# SPDX-License-Identifier: Apache-2.0
"""A row of the table of optimizers, and the kinds of values that options have."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Schema = dict[str, Any]

NUMBER: Schema = {"type": "number"}
SWITCH: Schema = {"type": "boolean"}
WORD: Schema = {"type": "string"}
NOT_NEGATIVE: Schema = {"type": "number", "minimum": 0}
POSITIVE: Schema = {"type": "number", "exclusiveMinimum": 0}
BELOW_ONE: Schema = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
COUNT: Schema = {"type": "integer", "minimum": 1}

BETAS = ("adam_beta1", "adam_beta2")
ADAM = (*BETAS, "adam_epsilon")


@dataclass(frozen=True, kw_only=True)
class OptimizerRow:
    """A value of ``training.optim``.

    Attributes:
        summary: One line for people.
        target: The class, as ``package.module:Class``; none where Transformers makes it.
        package: What must be installed beside hftune, as pip calls it.
        args: What ``training.optim_args`` may say, as JSON Schema.
        handed: Those of ``args`` that Transformers leaves out or hands over as text, so that hftune
            hands them to the class; all of them where there is a target.
        settings: What is handed to the class otherwise than its defaults.
        reads: Fields of ``TrainingArguments`` that it takes, beside the learning rate.
        decays: Whether it takes ``training.weight_decay``.
        groups: Whether hftune may say which parameters are in which group.
        state_bytes: Of its state, for each parameter that trains.
        learning_rate: The default, where that of the method would be of another order.
    """

    summary: str
    target: str | None = None
    package: str | None = None
    args: Mapping[str, Schema] = field(default_factory=dict)
    handed: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    decays: bool = True
    groups: bool = True
    state_bytes: float = 8
    learning_rate: float | None = None
