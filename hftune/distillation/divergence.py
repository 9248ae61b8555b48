# SPDX-License-Identifier: Apache-2.0
"""How far a student is from its teachers: in answers, hidden states and attention.

Letters: ``M`` teachers, ``N`` items that are taught (rows, or tokens), ``C`` classes, ``B`` rows,
``T`` tokens, ``D`` width, ``H`` heads. All sums; the trainer divides.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class TopK(NamedTuple):
    """The likeliest classes of a target, and what is left.

    Attributes:
        log_probs: Their log probabilities, shape ``(N, k)``.
        classes: Their ids, shape ``(N, k)``.
        rest: Log of the probability of all others together, shape ``(N,)``.
    """

    log_probs: Tensor
    classes: Tensor
    rest: Tensor


def target_log_probs(logits: Tensor, temperature: float) -> Tensor:
    """Return the log of the mean of the teachers' probabilities, shape ``(N, C)``.

    Args:
        logits: Shape ``(M, N, C)``.
        temperature: Divides the logits.
    """
    return (logits / temperature).log_softmax(-1).logsumexp(0) - math.log(len(logits))


def divergence(student: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 * KL(target || student at T)``, summed over the items, shape ``()``.

    ``T^2`` keeps the gradient's scale, whatever the temperature.

    Args:
        student: Logits, shape ``(N, C)``.
        target: Log probabilities at the same temperature, the same shape.
        temperature: Divides the student's logits.

    References:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
            arXiv:1503.02531, section 2.1.
    """
    shares = (student / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(shares, target, reduction="sum", log_target=True)


def top_k_of(target: Tensor, k: int) -> TopK:
    """Return the ``k`` likeliest classes of log probabilities ``(N, C)``, with ``k`` below ``C``.

    What is left is summed in itself: as 1 less the others it would be lost in rounding.
    """
    log_probs, classes = target.topk(k)
    return TopK(log_probs, classes, _all_but(target, classes))


def top_k_divergence(student: Tensor, target: TopK, temperature: float) -> Tensor:
    """Return :func:`divergence` over the target's classes and one for all others.

    By the log sum inequality it is never more than the whole divergence, and less by
    ``rest * KL`` of the two distributions over the others, which nothing teaches.

    Args:
        student: Logits, shape ``(N, C)``.
        target: At the same temperature.
        temperature: Divides the student's logits.
    """
    shares = (student / temperature).log_softmax(-1)
    kept = target.log_probs.exp() * (target.log_probs - shares.gather(-1, target.classes))
    rest = target.rest.exp()
    missed = rest * (target.rest - _all_but(shares, target.classes))
    return temperature**2 * (kept.sum() + missed.where(rest > 0, 0.0).sum())


def binary_divergence(student: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 * KL`` of the sigmoid of each logit, summed over all cells, shape ``()``.

    Args:
        student: Logits, shape ``(N, C)``.
        teachers: Logits, shape ``(M, N, C)``; the mean of their probabilities is the target.
        temperature: Divides the logits.
    """
    total = student.new_zeros(())
    for sign in (1, -1):
        target = F.logsigmoid(sign * teachers / temperature).logsumexp(0) - math.log(len(teachers))
        shares = F.logsigmoid(sign * student / temperature)
        total = total + F.kl_div(shares, target, reduction="sum", log_target=True)
    return temperature**2 * total


def hidden_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared difference over the width, summed over the tokens, shape ``()``.

    Args:
        student: Hidden states, shape ``(B, T, D)``.
        teacher: The same shape.
        mask: Whether a token counts, shape ``(B, T)``.

    References:
        Jiao et al., "TinyBERT", 2020, arXiv:1909.10351, section 3.1, after its projection.
    """
    return (student.float() - teacher.float()).square().mean(-1)[mask].sum()


def attention_divergence(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Return ``KL(teacher || student)``, mean over the heads, summed over the tokens, ``()``.

    Args:
        student: Shares of attention, shape ``(B, H, T, T)``.
        teacher: The same shape.
        mask: Whether a token counts, as one that attends, shape ``(B, T)``.

    References:
        Wang et al., "MiniLM", 2020, arXiv:2002.10957, section 3.1.
    """
    p, q = teacher.float(), student.float()
    tiny = torch.finfo(p.dtype).tiny  # what is masked has no share in either
    terms = p * (p.clamp(min=tiny).log() - q.clamp(min=tiny).log())
    return terms.sum(-1).mean(1)[mask].sum()


def _all_but(log_probs: Tensor, classes: Tensor) -> Tensor:
    """Log of the summed probability of the other classes, shape ``(N,)``."""
    return log_probs.scatter(-1, classes, -torch.inf).logsumexp(-1)
