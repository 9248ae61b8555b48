# SPDX-License-Identifier: Apache-2.0
"""Losses of one number a text: squared, absolute, and Huber's between the two.

Each is the mean over the rows of the accumulation group and all ranks, as ``torch.nn.MSELoss``,
``L1Loss`` and ``HuberLoss`` define it; a row whose label is NaN counts nothing.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hftune.losses.loss import (
    Batch,
    LabelStats,
    Loss,
    counted,
    forward,
    in_full,
    refuse_smoothing,
)


class Regression(Loss):
    """The error of the only logit."""

    def fit(self, stats: LabelStats) -> None:
        """Refuse label smoothing, because the labels are numbers; see :class:`Loss`.

        Raises:
            HftuneError: Label smoothing is asked for.
        """
        super().fit(stats)
        refuse_smoothing(stats, "classes, not with numbers")

    @abstractmethod
    def error(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Return the summed error, shape ``()``, of numbers of shape ``(N,)``."""

    def denominator(self, batch: Batch) -> Tensor:
        """Return the number of rows that have a label; see :class:`Loss`."""
        return counted(batch["labels"]).sum(dtype=torch.float64)

    def total(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """Return the summed loss and the model's outputs; see :class:`Loss`."""
        outputs = forward(model, inputs)
        labels, here = inputs["labels"], counted(inputs["labels"])
        predicted = in_full(outputs.logits[:, 0])[here]
        return self.error(predicted, labels[here].to(predicted)), outputs


@dataclass(kw_only=True)
class MeanSquaredError(Regression):
    """``(x - y)^2``."""

    def error(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Return the summed square; see :class:`Regression`."""
        return F.mse_loss(predicted, labels, reduction="sum")


@dataclass(kw_only=True)
class MeanAbsoluteError(Regression):
    """``|x - y|``."""

    def error(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Return the summed absolute value; see :class:`Regression`."""
        return F.l1_loss(predicted, labels, reduction="sum")


@dataclass(kw_only=True)
class Huber(Regression):
    """``(x - y)^2 / 2`` up to ``delta``, beyond it ``delta * (|x - y| - delta / 2)``.

    Args:
        delta: Where the square ends, in units of the targets.

    References:
        Huber, "Robust Estimation of a Location Parameter", 1964.
    """

    delta: float = 1.0

    def error(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Return the summed error; see :class:`Regression`."""
        return F.huber_loss(predicted, labels, reduction="sum", delta=self.delta)
