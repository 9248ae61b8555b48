# SPDX-License-Identifier: Apache-2.0
"""What a teacher says of a batch, and of which items of it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from hftune.distillation.divergence import TopK
from hftune.losses.loss import ROW, Batch, aligned, in_full


@dataclass(frozen=True)
class Answer:
    """What the teachers of a batch say.

    Attributes:
        logits: Of the taught items, one a teacher, shape ``(M, N, C)``; None where only the
            likeliest are kept.
        top: The likeliest, in place of ``logits``.
        hidden_states: Of the only teacher, where they are asked for.
        attentions: The same.
    """

    logits: Tensor | None = None
    top: TopK | None = None
    hidden_states: tuple[Tensor, ...] = ()
    attentions: tuple[Tensor, ...] = ()


class Teacher(ABC):
    """Answers batches: by running, or out of what was kept."""

    @abstractmethod
    def answer(self, inputs: Batch) -> Answer:
        """Return what the teachers say of a batch of training rows."""


def taught(logits: Tensor, inputs: Batch, *, causal: bool) -> Tensor:
    """Return the logits of the items that are taught, ``(N, C)``.

    Of tokens those that have a label; of texts all, with a label or without, but for blank rows.

    Args:
        logits: Of a classifier ``(B, C)``; of tokens ``(B, virtual tokens + T, C)``.
        inputs: The batch.
        causal: Whether position ``t`` predicts label ``t + 1``.
    """
    if by_token(inputs):
        return aligned(logits, inputs["labels"], causal=causal)[0]
    return in_full(logits[real_rows(inputs)])


def by_token(inputs: Batch) -> bool:
    """Tell whether it is tokens that have labels."""
    labels = inputs["labels"]
    return labels.dim() == 2 and not labels.is_floating_point()


def real_rows(inputs: Batch) -> Tensor:
    """Return which rows are none that fill up a batch, bool, shape ``(B,)``."""
    if ROW in inputs:
        return inputs[ROW] >= 0
    ids = inputs["input_ids"]
    return torch.ones(len(ids), dtype=torch.bool, device=ids.device)


def real_tokens(inputs: Batch) -> Tensor:
    """Return which tokens are none that fill up a batch, bool, shape ``(B, T)``."""
    return inputs["attention_mask"].bool() & real_rows(inputs)[:, None]
