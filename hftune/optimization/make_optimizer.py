# SPDX-License-Identifier: Apache-2.0
"""Resolve an optimizer name and its options to a class and its arguments."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from peft.optimizers import create_loraplus_optimizer
from torch import nn
from torch.optim import AdamW
from transformers import Trainer, TrainingArguments

from hftune.core.optimization_rows import OptimizerRow
from hftune.core.registry import named
from hftune.optimization.optim_args import values_of
from hftune.optimization.optimizers import OPTIMIZERS
from hftune.optimization.parameter_groups import Grouping, parameter_groups, split

ClassAndOptions = tuple[Any, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class OptimizerChoice:
    """An optimizer as a recipe names it.

    Attributes:
        name: ``training.optim``.
        args: ``training.optim_args``.
        grouping: Which parameters have rates of their own.
        loraplus: ``loraplus_lr_ratio`` and ``loraplus_lr_embedding``, where they are said.
    """

    name: str
    args: str | None = None
    grouping: Grouping = field(default_factory=Grouping)
    loraplus: Mapping[str, float] = field(default_factory=dict)

    @property
    def row(self) -> OptimizerRow:
        """Facts about it."""
        return OPTIMIZERS[self.name]

    @property
    def state_bytes(self) -> float:
        """Bytes of state for each parameter that trains."""
        return self.row.state_bytes_of(values_of(self.args))

    @property
    def is_plain(self) -> bool:
        """Whether the Trainer can make it without hftune."""
        row, values = self.row, values_of(self.args)
        own = row.target is not None or any(name in row.handed for name in values)
        return not (own or self.grouping.is_set or self.loraplus)


def class_and_options(
    choice: OptimizerChoice,
    arguments: TrainingArguments,
    model: nn.Module,
    decayed: Collection[str],
) -> ClassAndOptions:
    """Return the class and options from which ``Trainer.create_optimizer`` makes the optimizer.

    Args:
        choice: What the recipe says.
        arguments: Rates, betas and weight decay.
        model: What trains has ``requires_grad``.
        decayed: Names of the parameters that decay.

    Returns:
        The class, or a function that returns a function of the model; and the options, in which
        ``params`` are the groups.

    Raises:
        HftuneError: Nothing trains that the optimizer is for.
    """
    kind, options = kind_and_options(choice, arguments, model)
    if "params" in options or "model" in options or "optimizer_dict" in options:
        return kind, options  # those of Transformers that group by themselves
    if choice.loraplus:
        decay = {"loraplus_weight_decay": arguments.weight_decay}
        return lambda: create_loraplus_optimizer, {
            "optimizer_cls": kind, **options, **choice.loraplus, **decay,
        }  # fmt: skip
    if not choice.row.groups:
        return kind, {**options, "params": [p for p in model.parameters() if p.requires_grad]}
    decay_rate = arguments.weight_decay if choice.row.decays else 0.0
    groups = parameter_groups(
        model, choice.grouping, lr=arguments.learning_rate, weight_decay=decay_rate, decayed=decayed
    )
    if choice.row.first_part is None:
        return kind, {**options, "params": groups}
    return _combined(choice.row.first_part, (kind, options), groups, arguments, model)


def _combined(
    first_part: str,
    first: ClassAndOptions,
    groups: list[dict[str, Any]],
    arguments: TrainingArguments,
    model: nn.Module,
) -> ClassAndOptions:
    """Return an optimizer for a part of the parameters, and AdamW for the rest."""
    from hftune.optimization.combined_optimizer import CombinedOptimizer

    rest = {"lr": arguments.learning_rate, **_adam(arguments)}
    parts = [first, (AdamW, rest)]
    groups = split(groups, model, named(first_part)(model))
    return CombinedOptimizer, {"params": groups, "parts": parts, "lr": arguments.learning_rate}


def kind_and_options(
    choice: OptimizerChoice, arguments: TrainingArguments, model: nn.Module | None = None
) -> ClassAndOptions:
    """Return the class and its options without the groups."""
    row, values = choice.row, values_of(choice.args)
    if row.target is None:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)  # type: ignore[arg-type]
        return kind, {**options, **{k: v for k, v in values.items() if k in row.handed}}
    options = {"lr": arguments.learning_rate, **row.settings, **values}
    if row.reads:
        options |= _adam(arguments)
    return named(row.target), options


def _adam(arguments: TrainingArguments) -> dict[str, Any]:
    return {
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
    }
