# SPDX-License-Identifier: Apache-2.0
"""Squared error: regression. ``sum_i (x_i - y_i)^2 / n``, as ``torch.nn.MSELoss`` defines it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hftune.core.errors import HftuneError
from hftune.losses.contract import Batch, LabelFacts, Loss, counted, forward


@dataclass(kw_only=True)
class MeanSquaredError(Loss):
    """Mean squared error of the only logit; a row whose label is NaN counts nothing."""

    def fit(self, facts: LabelFacts) -> None:
        """Refuse label smoothing, which numbers have no use for; see :class:`Loss`.

        Raises:
            HftuneError: Label smoothing is asked for.
        """
        super().fit(facts)
        if facts.label_smoothing:
            raise HftuneError("training.label_smoothing_factor goes with classes, not with numbers")

    def denominator(self, batch: Batch) -> Tensor:
        """Return the number of rows that have a label; see :class:`Loss`."""
        return counted(batch["labels"]).sum(dtype=torch.float64)

    def total(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """Return the summed loss and the model's outputs; see :class:`Loss`."""
        outputs = forward(model, inputs)
        labels = inputs["labels"]
        here = counted(labels)
        predicted = outputs.logits[:, 0].float()[here]
        return F.mse_loss(predicted, labels[here].to(predicted), reduction="sum"), outputs
