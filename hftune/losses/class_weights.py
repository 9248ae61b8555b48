# SPDX-License-Identifier: Apache-2.0
"""Losses whose rows weigh by class, and the ways to choose the weights.

All of them divide by the summed weight of the labels, so the scale of the weights means nothing:
``balanced`` and ``inverse`` train the same model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hftune.core.errors import HftuneError
from hftune.losses.label_weights import label_weights
from hftune.losses.loss import Batch, LabelStats, Loss, counted, targets

ClassWeights = Literal["balanced", "inverse", "effective_number"] | list[float] | dict[str, float]
DEFAULT_BETA = 0.999


@dataclass(kw_only=True)
class ClassWeighted(Loss):
    """A loss of rows, or tokens, with one label each.

    Args:
        class_weights: ``balanced``, ``inverse``, ``effective_number``, one weight a class in label
            order, or label name -> weight (names left out weigh 1). For language models the classes
            are tokens.
        beta: Of ``effective_number``, in [0, 1): 0 weighs all classes alike, near 1 it is
            ``inverse``; 0.999 if None.
    """

    class_weights: ClassWeights | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        self.weight: Tensor | None = None
        self.counts: Tensor | None = None

    def fit(self, stats: LabelStats) -> None:
        """Turn names into ids and counts into weights; see :class:`Loss`.

        Raises:
            HftuneError: A class is unknown, the list has the wrong length, a weight is negative, or
                ``beta`` has no use.
        """
        super().fit(stats)
        if self.beta is not None and self.class_weights != "effective_number":
            raise HftuneError("loss.beta is that of class_weights: effective_number")
        self.counts = torch.tensor(stats.counts, dtype=torch.float32)
        if self.class_weights is not None:
            self.weight = class_weight_tensor(
                self.class_weights, stats.classes, stats.counts, self.beta
            )

    def prior(self) -> Tensor | None:
        """Return the shares of the training rows, times the weights; see :class:`Loss`."""
        if self.counts is None:
            return None
        seen = self.counts if self.weight is None else self.counts * self.weight
        return seen / seen.sum()

    def denominator(self, batch: Batch) -> Tensor:
        """Return the summed weight of the labels; see :class:`Loss`."""
        labels = targets(batch["labels"], causal=self.causal)
        labels = labels[counted(labels)]
        if self.weight is None:
            return torch.tensor(labels.numel(), dtype=torch.float64, device=labels.device)
        return self.weight.to(labels.device)[labels].sum(dtype=torch.float64)

    def weighted(self, losses: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the losses, each times the weight of its label, shape ``()``."""
        if self.weight is not None:
            losses = losses * self.weight.to(losses)[labels]
        return losses.sum()


def class_weight_tensor(
    weights: ClassWeights,
    classes: Sequence[str],
    counts: Sequence[float],
    beta: float | None = None,
) -> Tensor:
    """Return one weight a class, float32, shape ``(C,)``.

    With ``n`` training labels of a class, over the ``K`` classes that have any:

    - ``balanced``: ``sum(n) / (K * n)``, scikit-learn's definition;
    - ``inverse``: ``(1 / n) / sum(1 / n) * K``;
    - ``effective_number``: ``(1 - beta) / (1 - beta^n)``, scaled to the sum ``K``.

    A class without labels weighs 1.

    Raises:
        HftuneError: A class is unknown, the list has the wrong length, or a weight is negative.

    References:
        Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", 2019,
            arXiv:1901.05555, section 3.
    """
    if isinstance(weights, str):
        return _counted_weights(weights, torch.tensor(counts, dtype=torch.float64), beta)
    if not weights:
        raise HftuneError("loss.class_weights: no weight is given", hint="leave it out")
    given = label_weights("loss.class_weights", weights, classes)
    if given.min() < 0 or given.max() == 0:
        least = int(given.argmin())
        raise HftuneError(
            "loss.class_weights: weights must not be negative, nor all of them zero; "
            f"{classes[least]} has {given[least]:g}"
        )
    return given


def _counted_weights(kind: str, counts: Tensor, beta: float | None) -> Tensor:
    present, number = counts > 0, counts.clamp(min=1)
    if kind == "balanced":
        weights = counts.sum() / (present.sum() * number)
    else:
        share = DEFAULT_BETA if beta is None else beta
        weights = 1 / number if kind == "inverse" else (1 - share) / (1 - share**number)
        weights = weights / weights[present].sum() * present.sum()
    return torch.where(present, weights, 1.0).float()
