# SPDX-License-Identifier: Apache-2.0
"""Classes with an order: the binary log losses of "at least class k", summed over all k.

``-sum_k [ y >= k ] log P(y >= k) + [ y < k ] log P(y < k)`` for ``k`` from the second class to the
last: the tasks that CORAL and other extended binary classifications learn. There each has an
output of its own; here ``P`` is a sum over the softmax of an ordinary head, so the probabilities
always fall with ``k``, and the saved model is a plain classifier whose highest logit answers. Being
far off costs more than being near; with two classes it is cross-entropy.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hftune.core.errors import HftuneError
from hftune.losses.class_weights import ClassWeighted
from hftune.losses.loss import Batch, LabelStats, aligned, forward, refuse_smoothing


@dataclass(kw_only=True)
class Ordinal(ClassWeighted):
    """Cumulative log loss; the order of the classes is that of their ids.

    References:
        Li and Lin, "Ordinal Regression by Extended Binary Classification", 2006, NIPS.
        Cao et al., "Rank consistent ordinal regression for neural networks with application to age
            estimation", 2020, arXiv:1901.07884.
    """

    def fit(self, stats: LabelStats) -> None:
        """Check that the classes have an order; see :class:`ClassWeighted`.

        Raises:
            HftuneError: Their names are no numbers and the recipe does not list them, or label
                smoothing is asked for.
        """
        super().fit(stats)
        refuse_smoothing(stats, "cross-entropy, not with ordinal classes")
        if not stats.listed and not all(map(_is_number, stats.classes)):
            raise HftuneError(
                "loss: ordinal needs the order of the classes, and their names are no numbers",
                hint=f"data.label_names: [...], the lowest first; now: {', '.join(stats.classes)}",
            )

    def total(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """Return the summed loss and the model's outputs; see :class:`Loss`."""
        outputs = forward(model, inputs)
        logits, labels = aligned(outputs.logits, inputs["labels"], causal=self.causal)
        return self.weighted(cumulative_log_loss(logits, labels), labels), outputs


def cumulative_log_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each row, shape ``(N,)``.

    Args:
        logits: Shape ``(N, C)``, the classes in their order.
        labels: Class ids, shape ``(N,)``.
    """
    shares = logits.log_softmax(1)
    below = shares.logcumsumexp(1)[:, :-1]  # log P(y < k) for k = 1 ... C - 1
    from_k = shares.flip(1).logcumsumexp(1).flip(1)[:, 1:]  # log P(y >= k)
    ranks = torch.arange(1, logits.shape[1], device=labels.device)
    return -torch.where(labels[:, None] >= ranks, from_k, below).sum(1)


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
