# SPDX-License-Identifier: Apache-2.0
"""Focal loss: labels that the model is sure of count less.

``(1 - p)^gamma * -log p`` with the probability ``p`` of what is right: of the label where a row, or
a token, has one; of the presence or absence of each label where a text may have several. With
``gamma: 0`` it is cross-entropy, or binary cross-entropy, and it is divided by what they are.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hftune.core.cost import StepCost
from hftune.core.errors import HftuneError
from hftune.losses.bce_with_logits import PosWeight, pos_weight_tensor
from hftune.losses.chunked_head import in_chunks, summed_at_labels
from hftune.losses.class_weights import ClassWeighted
from hftune.losses.loss import (
    Batch,
    LabelStats,
    aligned,
    counted,
    forward,
    in_full,
    refuse_smoothing,
)


@dataclass(kw_only=True)
class Focal(ClassWeighted):
    """Focal loss of one label of several, or of each label on its own.

    Args:
        gamma: How fast what is easy fades; 2 in the paper, 0 is cross-entropy.
        pos_weight: Weight of the positives where a text may have several labels; as in
            :class:`hftune.losses.bce_with_logits.BceWithLogits`.

    References:
        Lin et al., "Focal Loss for Dense Object Detection", 2017, arXiv:1708.02002, equation 5.
    """

    gamma: float = 2.0
    pos_weight: PosWeight | None = None

    def fit(self, stats: LabelStats) -> None:
        """Learn the weights; see :class:`ClassWeighted`.

        Raises:
            HftuneError: Weights of the other kind of labels, or label smoothing, are asked for.
        """
        refuse_smoothing(stats, "cross-entropy, not with focal loss")
        if stats.several and self.class_weights is not None:
            raise HftuneError(
                "loss.class_weights: classes do not compete where a text may have several labels",
                hint="weigh the positives: pos_weight: balanced",
            )
        if not stats.several and self.pos_weight is not None:
            raise HftuneError(
                "loss.pos_weight: it weighs the positives of texts with several labels",
                hint="weigh the classes: class_weights: balanced",
            )
        super().fit(stats)
        if self.pos_weight is not None:
            self.weight = pos_weight_tensor(self.pos_weight, stats)

    def denominator(self, batch: Batch) -> Tensor:
        """Return the summed weight of the labels, or the number of cells; see :class:`Loss`."""
        if batch["labels"].is_floating_point():
            return counted(batch["labels"]).sum(dtype=torch.float64)
        return super().denominator(batch)

    def step_cost(self) -> StepCost:
        """Return the cost of one pass; two softmaxes make six tensors of the logits' size."""
        cost = replace(super().step_cost(), logit_copies=6)
        return in_chunks(cost) if self.causal else cost

    def total(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """Return the summed loss and the model's outputs; see :class:`Loss`."""
        if self.causal:
            return summed_at_labels(model, inputs, self._of_labels)
        outputs = forward(model, inputs)
        if inputs["labels"].is_floating_point():
            return self._of_cells(outputs.logits, inputs["labels"]), outputs
        return self._of_labels(*aligned(outputs.logits, inputs["labels"], causal=False)), outputs

    def _of_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.weighted(focal_loss(logits, labels, self.gamma), labels)

    def _of_cells(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits, here = in_full(logits), counted(labels)
        weights = torch.ones_like(logits)
        if self.weight is not None:
            weights = torch.where(labels > 0.5, self.weight.to(logits), weights)
        losses = binary_focal_loss(logits[here], labels[here].to(logits), self.gamma)
        return (losses * weights[here]).sum()


def focal_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Return ``(1 - p)^gamma * -log p`` with the probability ``p`` of the label, shape ``(N,)``.

    Args:
        logits: Shape ``(N, C)``.
        labels: Class ids, shape ``(N,)``.
        gamma: Not negative.
    """
    whole = logits.logsumexp(1)
    its_own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    # In logarithms (1 - p)^gamma has a gradient even where p rounds to 1.
    return (gamma * (others - whole)).exp() * (whole - its_own)


def binary_focal_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Return the same with the sigmoid of the logit as the probability of a 1.

    Args:
        logits: Any shape.
        labels: 0 or 1, the same shape.
        gamma: Not negative.
    """
    right = torch.where(labels > 0.5, logits, -logits)
    return (gamma * F.logsigmoid(-right)).exp() * -F.logsigmoid(right)
