# SPDX-License-Identifier: Apache-2.0
"""Binary cross-entropy for each label on its own: multi-label classification.

``-[p_c * y * log s(x) + (1 - y) * log(1 - s(x))]`` with the sigmoid ``s`` and the weight ``p_c`` of
positives, as ``torch.nn.BCEWithLogitsLoss(pos_weight=)`` defines it: the mean runs over every cell
of the accumulation group and all ranks, and a cell whose label is NaN counts nothing.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hftune.core.errors import HftuneError
from hftune.losses.label_weights import label_weights
from hftune.losses.loss import (
    Batch,
    LabelStats,
    Loss,
    counted,
    forward,
    in_full,
    refuse_smoothing,
)

PosWeight = Literal["balanced"] | list[float] | dict[str, float]


@dataclass(kw_only=True)
class BceWithLogits(Loss):
    """Binary cross-entropy of each label.

    Args:
        pos_weight: Weight of the positives: ``balanced`` (negatives / positives of each label), one
            weight a label in label order, or label name -> weight (names left out weigh 1).
    """

    pos_weight: PosWeight | None = None

    def __post_init__(self) -> None:
        self.weight: Tensor | None = None

    def fit(self, stats: LabelStats) -> None:
        """Turn names into ids and ``balanced`` into numbers; see :class:`Loss`.

        Raises:
            HftuneError: A label is unknown, the list has the wrong length, or a weight is not
                above zero; label smoothing is asked for.
        """
        super().fit(stats)
        refuse_smoothing(stats, "one label a text only")
        if self.pos_weight is not None:
            self.weight = pos_weight_tensor(self.pos_weight, stats)

    def denominator(self, batch: Batch) -> Tensor:
        """Return the number of cells that have a label; see :class:`Loss`."""
        return counted(batch["labels"]).sum(dtype=torch.float64)

    def total(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """Return the summed loss and the model's outputs; see :class:`Loss`."""
        outputs = forward(model, inputs)
        logits, labels = in_full(outputs.logits), inputs["labels"]
        here = counted(labels)
        weight = None if self.weight is None else self.weight.to(logits).expand_as(logits)[here]
        total = F.binary_cross_entropy_with_logits(
            logits[here], labels[here].to(logits), pos_weight=weight, reduction="sum"
        )
        return total, outputs


def pos_weight_tensor(given: PosWeight, stats: LabelStats) -> Tensor:
    """Return one weight a label, float32, shape ``(C,)``.

    Raises:
        HftuneError: A label is unknown, the list has the wrong length, or a weight is not above
            zero.
    """
    if given == "balanced":
        positives = torch.tensor(stats.counts, dtype=torch.float32)
        return (stats.rows - positives).clamp(min=1) / positives.clamp(min=1)
    weights = label_weights("loss.pos_weight", given, stats.classes)
    if weights.min() <= 0:
        raise HftuneError("loss.pos_weight: weights must be above zero")
    return weights
