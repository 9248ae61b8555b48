# SPDX-License-Identifier: Apache-2.0
"""Compute distances of a student from its teachers: of answers, hidden states and attention.

Letters: ``M`` teachers, ``N`` taught items (rows or tokens), ``C`` classes, ``B`` rows, ``T``
tokens, ``D`` width, ``H`` heads. All results are sums; the Trainer divides.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class TopK(NamedTuple):
    """The likeliest classes of a target, and the probability of the others.

    Attributes:
        log_probs: Log probabilities of the likeliest classes, shape ``(N, k)``.
        classes: Ids of the likeliest classes, shape ``(N, k)``.
        rest: Log of the total probability of all other classes, shape ``(N,)``.
    """

    log_probs: Tensor
    classes: Tensor
    rest: Tensor


def target_log_probs(logits: Tensor, temperature: float) -> Tensor:
    """Return the log of the mean of the teachers' probabilities, shape ``(N, C)``.

    Args:
        logits: Shape ``(M, N, C)``.
        temperature: Divides the logits.

    Example:
        >>> logits = torch.tensor([[[0.0, 0.0]], [[0.0, 100.0]]])  # two teachers, one item
        >>> target_log_probs(logits, 1.0).exp()  # the mean of (0.5, 0.5) and (0, 1)
        tensor([[0.2500, 0.7500]])
    """
    return (logits / temperature).log_softmax(-1).logsumexp(0) - math.log(len(logits))


def divergence(student: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 * KL(target || student at T)``, summed over the items, shape ``()``.

    ``T^2`` keeps the scale of the gradient for any temperature.

    Args:
        student: Logits, shape ``(N, C)``.
        target: Log probabilities at the same temperature, the same shape.
        temperature: Divides the student's logits.

    References:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
            arXiv:1503.02531, section 2.1.

    Example:
        >>> student = torch.tensor([[0.0, 0.0]])  # probabilities (1/2, 1/2)
        >>> target = torch.tensor([[0.25, 0.75]]).log()
        >>> divergence(student, target, 1.0)  # log 2 - 0.5623, the entropy of the target
        tensor(0.1308)
    """
    shares = (student / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(shares, target, reduction="sum", log_target=True)


def top_k_of(target: Tensor, k: int) -> TopK:
    """Return the ``k`` likeliest classes of log probabilities ``(N, C)``, with ``k`` below ``C``.

    The probability of the others is a sum: 1 minus the likeliest would lose it in rounding.

    Example:
        >>> top = top_k_of(torch.tensor([[0.5, 0.25, 0.25]]).log(), 1)
        >>> top.classes, top.rest.exp()
        (tensor([[0]]), tensor([0.5000]))
    """
    log_probs, classes = target.topk(k)
    return TopK(log_probs, classes, _all_but(target, classes))


def top_k_divergence(student: Tensor, target: TopK, temperature: float) -> Tensor:
    """Return :func:`divergence` with all classes but the likeliest joined into one.

    By the log sum inequality it is at most the whole divergence. The difference is ``rest * KL`` of
    the two distributions over the other classes, which the student does not learn.

    Args:
        student: Logits, shape ``(N, C)``.
        target: The likeliest classes at the same temperature.
        temperature: Divides the student's logits.

    Example:
        >>> student = torch.tensor([[0.5, 0.4, 0.1]]).log()
        >>> target = top_k_of(torch.tensor([[0.5, 0.1, 0.4]]).log(), 1)  # 1/2 and the rest, 1/2
        >>> abs(top_k_divergence(student, target, 1.0).item()) < 1e-6
        True
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

    Example:
        >>> student = torch.tensor([[0.0, 2.0]])
        >>> binary_divergence(student, student[None], 2.0).item()  # equal to its only teacher
        0.0
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

    Example:
        >>> student, teacher = torch.zeros(1, 2, 4), torch.ones(1, 2, 4)
        >>> hidden_distance(student, teacher, torch.tensor([[True, False]]))  # one token counts
        tensor(1.)
    """
    return (student.float() - teacher.float()).square().mean(-1)[mask].sum()


def attention_divergence(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Return ``KL(teacher || student)``, averaged over the heads, summed over the tokens, ``()``.

    Args:
        student: Attention weights, shape ``(B, H, T, T)``.
        teacher: The same shape.
        mask: Whether a token counts as a query, shape ``(B, T)``.

    References:
        Wang et al., "MiniLM", 2020, arXiv:2002.10957, section 3.1.

    Example:
        >>> teacher = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
        >>> student = torch.full((1, 1, 2, 2), 0.5)
        >>> attention_divergence(student, teacher, torch.tensor([[True, True]]))  # log 2 + 0
        tensor(0.6931)
    """
    p, q = teacher.float(), student.float()
    tiny = torch.finfo(p.dtype).tiny  # masked keys have weight 0 in both
    terms = p * (p.clamp(min=tiny).log() - q.clamp(min=tiny).log())
    return terms.sum(-1).mean(1)[mask].sum()


def _all_but(log_probs: Tensor, classes: Tensor) -> Tensor:
    """Return the log of the total probability of the other classes, shape ``(N,)``."""
    return log_probs.scatter(-1, classes, -torch.inf).logsumexp(-1)
