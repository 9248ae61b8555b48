# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy for classifiers and causal language models, weighted by class, exact in any split.

``sum_i w[y_i] * -log p(y_i) / sum_i w[y_i]``, as ``torch.nn.functional.cross_entropy(weight=)``
defines it, with both sums over the whole accumulation group and all ranks. With label smoothing
``e`` the term of a row is ``(1 - e) * w[y] * nll(y) + e / C * sum_c w[c] * nll(c)``, torch's too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hftune.core.errors import HftuneError
from hftune.losses.contract import Batch, LabelFacts, Loss, aligned, counted, forward, targets
from hftune.losses.label_weights import label_weights

ClassWeights = Literal["balanced"] | list[float] | dict[str, float]


@dataclass(kw_only=True)
class CrossEntropy(Loss):
    """Negative log likelihood of the labels.

    Args:
        class_weights: ``balanced``, one weight a class in label order, or label name -> weight
            (names left out weigh 1). For language models the classes are tokens.
    """

    class_weights: ClassWeights | None = None

    def __post_init__(self) -> None:
        self.weight: Tensor | None = None
        self.label_smoothing = 0.0

    def fit(self, facts: LabelFacts) -> None:
        """Turn names into ids and ``balanced`` into numbers; see :class:`Loss`.

        Raises:
            HftuneError: A class is unknown, the list has the wrong length, or a weight is negative.
        """
        super().fit(facts)
        self.label_smoothing = facts.label_smoothing
        if self.class_weights is not None:
            self.weight = class_weight_tensor(self.class_weights, facts.classes, facts.counts)

    def denominator(self, batch: Batch) -> Tensor:
        """Return the summed weight of the labels; see :class:`Loss`."""
        labels = targets(batch["labels"], causal=self.causal)
        labels = labels[counted(labels)]
        if self.weight is None:
            return torch.tensor(labels.numel(), dtype=torch.float64, device=labels.device)
        return self.weight.to(labels.device)[labels].sum(dtype=torch.float64)

    def total(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """Return the summed loss and the model's outputs; see :class:`Loss`."""
        outputs = forward(model, inputs)
        logits, labels = aligned(outputs.logits, inputs["labels"], causal=self.causal)
        total = F.cross_entropy(
            logits,
            labels,
            weight=None if self.weight is None else self.weight.to(logits),
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return total, outputs


def class_weight_tensor(
    weights: ClassWeights, classes: Sequence[str], counts: Sequence[int]
) -> Tensor:
    """Return one weight a class, float32, shape ``(C,)``.

    ``balanced`` is ``rows / (present classes * rows of the class)``, scikit-learn's definition; a
    class without rows weighs 1.

    Raises:
        HftuneError: A class is unknown, the list has the wrong length, or a weight is negative.
    """
    if weights == "balanced":
        number = torch.tensor(counts, dtype=torch.float32)
        balanced = number.sum() / (number.gt(0).sum() * number.clamp(min=1))
        return torch.where(number > 0, balanced, torch.ones_like(number))
    given = label_weights("loss.class_weights", weights, classes)
    if given.min() < 0 or given.max() == 0:
        raise HftuneError("loss.class_weights: weights must not be negative, nor all of them zero")
    return given
