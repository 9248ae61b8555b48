# SPDX-License-Identifier: Apache-2.0
"""Supervised contrastive loss beside cross-entropy: rows of one class are drawn together.

``(1 - c) * ce + c * con`` for each row, times the weight of its label, with the share ``c`` and

``con_i = -mean_{p in P(i)} log( exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a / t) )``

over the other rows ``a`` of the micro-batch and those of them, ``P(i)``, that share its label; here
``z`` is the pooled last hidden state, scaled to length 1. A row without company has no second term.
So the gradient depends on which rows share a micro-batch; this loss is no plain sum over rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hftune.losses.cross_entropy import CrossEntropy
from hftune.losses.loss import Batch, aligned, counted, refuse_encoder_decoder
from hftune.models.pooling import Pooling, pooled


@dataclass(kw_only=True)
class SupervisedContrastive(CrossEntropy):
    """Cross-entropy and the supervised contrastive loss of the hidden states.

    Args:
        contrastive_weight: Share of the contrastive term, in [0, 1]; Gunel et al. took 0.9.
        temperature: Divides the cosines; the smaller, the more the nearest rows matter.
        pooling: What becomes of a row's tokens: their mean, the first, or the last.

    References:
        Khosla et al., "Supervised Contrastive Learning", 2020, arXiv:2004.11362, equation 2.
        Gunel et al., "Supervised Contrastive Learning for Pre-trained Language Model Fine-tuning",
            2021, arXiv:2011.01403 (beside cross-entropy).
    """

    contrastive_weight: float = 0.5
    temperature: float = 0.1
    pooling: Pooling = "mean"

    def check(self, model: nn.Module) -> None:
        """Raise :class:`HftuneError` if the model has no hidden states to compare."""
        refuse_encoder_decoder(model, "supervised_contrastive reads an encoder, or a decoder")

    def total(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """Return the summed loss and the model's outputs; see :class:`Loss`."""
        known = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**known, output_hidden_states=True)
        logits, labels = aligned(outputs.logits, inputs["labels"], causal=False)
        mask = inputs["attention_mask"]
        hidden = outputs.hidden_states[-1][:, -mask.shape[1] :]  # virtual tokens stand before
        vectors = pooled(hidden, mask, self.pooling).to(logits.dtype)[counted(inputs["labels"])]
        apart = self.weighted(contrastive_loss(vectors, labels, self.temperature), labels)
        share = self.contrastive_weight
        return (1 - share) * self.cross_entropy(logits, labels) + share * apart, outputs


def contrastive_loss(vectors: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the contrastive loss of each row among the others, 0 without company, ``(N,)``.

    Args:
        vectors: Of any length, shape ``(N, D)``.
        labels: Class ids, shape ``(N,)``.
        temperature: Above zero.
    """
    z = F.normalize(vectors, dim=1)
    myself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    alike = labels[:, None].eq(labels).logical_and(~myself)
    similar = (z @ z.T / temperature).masked_fill(myself, -torch.inf)
    # A row that is alone in its micro-batch has no sum to take the logarithm of.
    log_shares = similar.masked_fill(myself, 0.0) - similar.logsumexp(1, keepdim=True)
    company = alike.sum(1)
    return -log_shares.where(alike, 0.0).sum(1) / company.clamp(min=1)
