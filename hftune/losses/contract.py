# SPDX-License-Identifier: Apache-2.0
"""The loss contract: a sum, and the number it is divided by, known before the forward pass.

The trainer adds the denominators of a whole accumulation group over all ranks and divides once. So
eight rows give the same gradient as 1 x 8, 2 x 4 or 8 x 1 micro-batches, on one process or two.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]


class Loss(ABC):
    """A loss as a sum over what it counts."""

    def fit(
        self, classes: Sequence[str], counts: Sequence[int], *, label_smoothing: float = 0.0
    ) -> None:
        """Learn from the training data what the options need.

        Args:
            classes: Name of each class, by id; a language model's classes are its tokens.
            counts: Training labels of each class, by id.
            label_smoothing: ``training.label_smoothing_factor``, in [0, 1).
        """

    @abstractmethod
    def denominator(self, batch: Batch) -> Tensor:
        """Return what the sum is divided by, from the labels alone, float, shape ``()``."""

    @abstractmethod
    def total(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """Run the model and return the summed loss, shape ``()``, and the model's outputs."""


def forward(model: nn.Module, inputs: Batch) -> Any:
    """Run the model without its labels, so that it computes no loss of its own."""
    return model(**{key: value for key, value in inputs.items() if key != "labels"})


def targets(labels: Tensor) -> Tensor:
    """Return the labels that are predicted: a language model never predicts the first position.

    Args:
        labels: ``(B,)`` of a classifier, ``(B, T)`` of a language model.
    """
    return labels[:, 1:] if labels.dim() == 2 else labels


def aligned(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits ``(N, C)`` and the labels ``(N,)`` that they predict.

    Args:
        logits: Of a classifier ``(B, C)``; of a language model ``(B, virtual tokens + T, C)``.
        labels: Of a classifier ``(B,)``; of a language model ``(B, T)``, -100 where not trained.
            Position ``t`` of a language model predicts label ``t + 1``.
    """
    kept = targets(labels)
    if labels.dim() == 2:
        logits = logits[:, logits.shape[1] - labels.shape[1] : -1]
    counted = kept.ne(-100)  # select first: the softmax of the other positions is never needed
    logits = logits[counted]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), kept[counted]
