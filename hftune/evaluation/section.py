# SPDX-License-Identifier: Apache-2.0
"""Keys of the section ``evaluation:``: the evaluation of validation rows."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class EvaluationSection:
    """Evaluation of the validation rows; ``training`` decides when it happens.

    Example:
        >>> EvaluationSection(thresholds="best_f1").thresholds
        'best_f1'
    """

    metrics: list[str | dict[str, Any]] | None = field(
        default=None,
        metadata={
            "help": "Metrics of the evaluate library beside hftune's own: names, paths of metric "
            "scripts, or {name: f1, average: micro}. They run code: train with --trust-metrics."
        },
    )
    thresholds: float | dict[str, float] | Literal["best_f1"] | None = field(
        default=None,
        metadata={
            "help": "Probability from which on a label is given: one (0.5 if absent), label to "
            "threshold, or best_f1: those with the highest F1 on the validation rows, which then "
            "flatter the model. Of classes that compete, the highest probability over threshold "
            "wins."
        },
    )
    prior: Literal["uniform", "estimated"] | list[float] | dict[str, float] | None = field(
        default=None,
        metadata={
            "help": "Class shares where the model will be used, which its probabilities are "
            "corrected for: uniform, a list in label order, label to share, or estimated from the "
            "rows that are judged, without their labels."
        },
    )
    generation: dict[str, Any] | bool | None = field(
        default=None,
        metadata={
            "help": "Fields of transformers.GenerationConfig: evaluation lets the model write and "
            "judges the texts. true is greedy, false is none; text2text-generation has it on."
        },
    )
    gap: bool = field(
        default=False,
        metadata={
            "help": "Judge as many training rows beside the validation rows: eval_train_loss, and "
            "eval_gap, by which the validation loss is above it."
        },
    )
