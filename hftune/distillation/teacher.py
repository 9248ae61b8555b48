# SPDX-License-Identifier: Apache-2.0
"""Teachers and their answers to the items of a batch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from hftune.distillation.divergence import TopK
from hftune.losses.loss import ROW, Batch, aligned, in_full


@dataclass(frozen=True)
class Answer:
    """The answers of the teachers to a batch.

    Attributes:
        logits: Logits of each teacher for the taught items, shape ``(M, N, C)``; None if only the
            likeliest classes are kept.
        top: The likeliest classes, in place of ``logits``.
        hidden_states: Hidden states of a single teacher, if the loss needs them.
        attentions: Attention weights of a single teacher, if the loss needs them.
    """

    logits: Tensor | None = None
    top: TopK | None = None
    hidden_states: tuple[Tensor, ...] = ()
    attentions: tuple[Tensor, ...] = ()


class Teacher(ABC):
    """Base class of teachers that run, or read their answers from the cache."""

    @abstractmethod
    def answer(self, inputs: Batch) -> Answer:
        """Return the teachers' answers to a batch of training rows."""


def taught(logits: Tensor, inputs: Batch, *, causal: bool) -> Tensor:
    """Return the logits of the taught items, ``(N, C)``.

    These are all tokens with a label, or all texts, with or without a label, except blank rows.

    Args:
        logits: ``(B, C)`` for texts, ``(B, virtual tokens + T, C)`` for tokens.
        inputs: The batch.
        causal: Whether position ``t`` predicts label ``t + 1``.
    """
    if by_token(inputs):
        return aligned(logits, inputs["labels"], causal=causal)[0]
    return in_full(logits[real_rows(inputs)])


def by_token(inputs: Batch) -> bool:
    """Tell whether the labels of a batch belong to tokens.

    Example:
        >>> by_token({"labels": torch.tensor([[1, -100]])}), by_token({"labels": torch.tensor([1])})
        (True, False)
    """
    labels = inputs["labels"]
    return labels.dim() == 2 and not labels.is_floating_point()


def real_rows(inputs: Batch) -> Tensor:
    """Return the mask of the rows that are not blank, bool, shape ``(B,)``."""
    if ROW in inputs:
        return inputs[ROW] >= 0
    ids = inputs["input_ids"]
    return torch.ones(len(ids), dtype=torch.bool, device=ids.device)


def real_tokens(inputs: Batch) -> Tensor:
    """Return the mask of the tokens that are neither padding nor of a blank row, shape ``(B, T)``.

    Example:
        >>> ids, mask = torch.tensor([[5, 6], [7, 0]]), torch.tensor([[1, 1], [1, 0]])
        >>> real_tokens({"input_ids": ids, "attention_mask": mask})
        tensor([[ True,  True],
                [ True, False]])
    """
    return inputs["attention_mask"].bool() & real_rows(inputs)[:, None]
