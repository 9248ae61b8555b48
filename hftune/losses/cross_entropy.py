# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy for classifiers and language models, weighted by class, exact in any split.

``sum_i w[y_i] * -log p(y_i) / sum_i w[y_i]``, as ``torch.nn.functional.cross_entropy(weight=)``
defines it, with both sums over the whole accumulation group and all ranks. With label smoothing
``e`` the term of a row is ``(1 - e) * w[y] * nll(y) + e / C * sum_c w[c] * nll(c)``, torch's too.
With logit adjustment ``tau`` the loss sees ``logits + tau * log(shares of the classes)``; the model
answers without it, and so for classes of equal size.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hftune.core.cost import StepCost
from hftune.losses.chunked_head import in_chunks, summed_at_labels
from hftune.losses.class_weights import ClassWeighted
from hftune.losses.loss import Batch, LabelStats, aligned, forward


@dataclass(kw_only=True)
class CrossEntropy(ClassWeighted):
    """Negative log likelihood of the labels.

    Args:
        logit_adjustment: How much of the log shares of the classes the loss adds to the logits
            (tau); 1 in the paper. A class without rows counts as if it had one.

    References:
        Menon et al., "Long-tail learning via logit adjustment", 2021, arXiv:2007.07314,
            equation 10.
    """

    logit_adjustment: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.label_smoothing = 0.0
        self.adjustment: Tensor | None = None

    def fit(self, stats: LabelStats) -> None:
        """Learn the weights, the class shares and the smoothing; see :class:`ClassWeighted`."""
        super().fit(stats)
        self.label_smoothing = stats.label_smoothing
        if self.logit_adjustment is not None:
            assert self.counts is not None
            counts = self.counts.clamp(min=1)
            self.adjustment = self.logit_adjustment * (counts / counts.sum()).log()

    def prior(self) -> Tensor | None:
        """Return the class shares after the weights, less the adjustment; see :class:`Loss`."""
        shares = super().prior()
        if shares is None or self.adjustment is None:
            return shares
        left = shares / self.adjustment.exp()
        return left / left.sum()

    def step_cost(self) -> StepCost:
        """Return the cost of one pass; the logits of a causal model are chunked."""
        cost = super().step_cost()
        return in_chunks(cost) if self.causal else cost

    def total(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """Return the summed loss and the model's outputs; see :class:`Loss`."""
        if self.causal:
            return summed_at_labels(model, inputs, self.cross_entropy)
        outputs = forward(model, inputs)
        logits, labels = aligned(outputs.logits, inputs["labels"], causal=False)
        return self.cross_entropy(logits, labels), outputs

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the summed loss, shape ``()``.

        Args:
            logits: Shape ``(N, C)``.
            labels: Class ids, shape ``(N,)``, or how much each class counts, shape ``(N, C)``.
        """
        if self.adjustment is not None:
            logits = logits + self.adjustment.to(logits)
        return F.cross_entropy(
            logits,
            labels,
            weight=None if self.weight is None else self.weight.to(logits),
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
