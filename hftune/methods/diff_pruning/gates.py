# SPDX-License-Identifier: Apache-2.0
"""The arithmetic: hard-concrete gates, their expected number, and the projection by magnitude.

Gates: Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0 Regularization",
2018, arXiv:1712.01312, with temperature 1 and the stretch of Guo, Rush and Kim 2021, section 3.1.
"""

import math
from collections.abc import Sequence
from decimal import Decimal

import torch
from torch import Tensor

#: A gate is a sigmoid stretched from LOWER to UPPER and cut to [0, 1].
LOWER, UPPER = -1.5, 1.5
#: Keeps the noise's logit finite.
EPSILON = 1e-6


def sample_gates(log_alpha: Tensor, *, noise: bool) -> Tensor:
    """Draw gates in [0, 1], with gradients to ``log_alpha``.

    ``s = sigmoid(log u - log(1 - u) + log_alpha)`` with uniform ``u``, stretched and cut.

    Args:
        log_alpha: Any shape.
        noise: Whether to draw; else the gates that evaluation uses, without noise.

    Example:
        >>> sample_gates(torch.tensor([-3.0, 0.0, 3.0]), noise=False).tolist()
        [0.0, 0.0, 1.0]
    """
    if noise:
        uniform = torch.empty_like(log_alpha).uniform_(EPSILON, 1 - EPSILON)
        log_alpha = log_alpha + uniform.logit_()
    return (torch.sigmoid(log_alpha) * (UPPER - LOWER) + LOWER).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """Return the probability that a drawn gate is not zero; Louizos et al., equation 12.

    Example:
        >>> open_probability(torch.tensor(0.0)).item()
        0.5
    """
    return torch.sigmoid(log_alpha - math.log(-LOWER / UPPER))


def num_kept(total: int, sparsity: float) -> int:
    """Return how many of ``total`` stay non-zero, rounded down, without binary rounding.

    Example:
        >>> num_kept(10, 0.9)
        1
    """
    return math.floor((1 - Decimal(str(sparsity))) * total)


def keep_largest(magnitudes: Sequence[Tensor], keep: int) -> list[Tensor]:
    """Return masks of the ``keep`` largest entries over all tensors; never of a zero.

    The threshold is found by bisection over the bits of a float, which orders as the number does:
    no copy of all entries is made, and equal inputs give equal masks on every process. Of entries
    at the threshold the first ones stay.

    Args:
        magnitudes: Float32 tensors without negative entries.
        keep: Entries to keep at most.

    Example:
        >>> masks = keep_largest([torch.tensor([3.0, 1.0]), torch.tensor([2.0])], 2)
        >>> [mask.tolist() for mask in masks]
        [[True, False], [True]]
    """
    bits = [tensor.contiguous().view(torch.int32) for tensor in magnitudes]

    def above(threshold: int) -> int:
        return sum(int((tensor > threshold).sum()) for tensor in bits)

    low, high = 0, 2**31 - 1  # more than `keep` are above low, or low is 0; at most `keep` at high
    if above(0) <= keep:
        return [tensor > 0 for tensor in bits]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if above(middle) > keep else (low, middle)
    left = keep - above(high)
    masks = []
    for tensor in bits:
        mask = tensor > high
        ties = (tensor == high).flatten().nonzero().flatten()[:left]
        mask.view(-1)[ties] = True
        left -= len(ties)
        masks.append(mask)
    return masks
