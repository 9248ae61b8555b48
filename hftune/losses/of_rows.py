# SPDX-License-Identifier: Apache-2.0
"""The loss of each row on its own, without weights, smoothing or options: how hard a row is."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hftune.losses.chunked_head import summed_at_labels
from hftune.losses.loss import Batch, aligned, counted, in_full, targets


def row_losses(logits: Tensor, labels: Tensor, *, causal: bool = False) -> Tensor:
    """Return one cross-entropy a row, shape ``(B,)``: of its class, or the mean over its tokens.

    Args:
        logits: What the model returned.
        labels: As the collator made them.
        causal: Whether position ``t`` predicts label ``t + 1``.
    """
    if labels.dim() == 1:
        return F.cross_entropy(in_full(logits), labels, reduction="none")
    sums, counts = token_losses(logits, labels, causal=causal)
    return sums / counts.clamp(min=1)


def token_losses(logits: Tensor, labels: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy and the number of trained tokens of each row.

    Args:
        logits: Shape ``(B, virtual tokens + T, C)``.
        labels: Shape ``(B, T)``, -100 where nothing is trained.
        causal: Whether position ``t`` predicts label ``t + 1``.

    Returns:
        Both of shape ``(B,)``.
    """
    losses = F.cross_entropy(*aligned(logits, labels, causal=causal), reduction="none")
    return _by_row(losses, counted(targets(labels, causal=causal)))


def token_losses_of(model: nn.Module, inputs: Batch) -> tuple[Tensor, Tensor]:
    """Return :func:`token_losses` of a causal model, without its whole logits.

    Args:
        model: In evaluation mode.
        inputs: With ``labels``, shape ``(B, T)``.
    """
    parts: list[Tensor] = []

    def note(logits: Tensor, labels: Tensor) -> Tensor:
        parts.append(F.cross_entropy(logits, labels, reduction="none"))
        return parts[-1].sum()

    summed_at_labels(model, inputs, note)
    return _by_row(torch.cat(parts), counted(targets(inputs["labels"], causal=True)))


def _by_row(losses: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
    """Add up losses that come one row after the other, and count them."""
    sums = torch.zeros(len(here), device=losses.device, dtype=losses.dtype)
    return sums.index_add_(0, here.nonzero()[:, 0], losses), here.sum(1)
