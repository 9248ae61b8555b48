# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of diff pruning against closed forms, Monte Carlo, finite sums and sorting."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from hftune.methods.diff_pruning.gates import (
    LOWER,
    UPPER,
    keep_largest,
    num_kept,
    open_probability,
    sample_gates,
)
from hftune.methods.diff_pruning.mask_packing import pack, unpack

ALPHAS = torch.tensor([-4.0, -1.0, 0.0, 0.7, 3.0])


def gate(uniform: Tensor, log_alpha: Tensor) -> Tensor:
    """Louizos et al. 2018, equations 10 and 11 with temperature 1, written out."""
    s = 1 / (1 + torch.exp(-(torch.log(uniform) - torch.log(1 - uniform) + log_alpha)))
    return torch.clamp(s * (UPPER - LOWER) + LOWER, min=0, max=1)


def test_open_probability_is_what_is_drawn_and_the_closed_form() -> None:
    torch.manual_seed(0)
    drawn = torch.stack([sample_gates(ALPHAS, noise=True) for _ in range(10_000)])
    expected = [1 / (1 + math.exp(-a + math.log(-LOWER / UPPER))) for a in ALPHAS.tolist()]
    torch.testing.assert_close(open_probability(ALPHAS), torch.tensor(expected))
    error = (drawn.gt(0).float().mean(0) - torch.tensor(expected)).abs()
    assert (error < 4 * 0.5 / math.sqrt(10_000)).all()  # four standard errors at the widest


def test_drawn_gates_have_the_mean_that_integration_gives() -> None:
    torch.manual_seed(1)
    grid = (torch.arange(50_000, dtype=torch.float64) + 0.5) / 50_000
    integral = gate(grid[:, None], ALPHAS.double()).mean(0)
    drawn = torch.stack([sample_gates(ALPHAS, noise=True) for _ in range(10_000)]).mean(0)
    torch.testing.assert_close(drawn.double(), integral, atol=0.02, rtol=0)


def test_gradient_of_the_reparameterisation() -> None:
    """With the same uniform numbers the gate is a plain function of log alpha."""
    log_alpha = ALPHAS.double().repeat(200).requires_grad_()
    torch.manual_seed(2)
    sample_gates(log_alpha, noise=True).sum().backward()
    torch.manual_seed(2)
    uniform = torch.empty_like(log_alpha).uniform_(1e-6, 1 - 1e-6)
    step = 1e-6
    with torch.no_grad():
        numeric = (gate(uniform, log_alpha + step) - gate(uniform, log_alpha - step)) / (2 * step)
    at_a_corner = (numeric - log_alpha.grad).abs() > 1e-4
    assert at_a_corner.sum() <= 1  # the clamp has a corner, which a difference may straddle
    assert log_alpha.grad[~at_a_corner].gt(0).any()
    assert log_alpha.grad.eq(0).any()


def test_gates_without_noise_reach_zero_and_one() -> None:
    assert sample_gates(torch.tensor([-5.0, 0.0, 5.0]), noise=False).tolist() == [0, 0, 1]


@pytest.mark.parametrize("total", [1, 10, 999, 22_713_216])
@pytest.mark.parametrize("sparsity", [0.995, 0.9, 0.7, 0.999])
def test_num_kept_rounds_down_in_decimal(total: int, sparsity: float) -> None:
    assert num_kept(total, sparsity) == math.floor((1 - Fraction(str(sparsity))) * total)


@pytest.mark.parametrize("keep", [0, 1, 7, 60, 119, 120, 500])
def test_keep_largest_is_sorting(keep: int) -> None:
    torch.manual_seed(3)
    tensors = [torch.rand(8, 10), torch.rand(40) * 1e-30, torch.rand(())]
    tensors[1][::2] = 0.0
    masks = keep_largest(tensors, keep)
    everything = torch.cat([tensor.flatten() for tensor in tensors])
    chosen = torch.cat([mask.flatten() for mask in masks])
    nonzero = int(everything.gt(0).sum())
    assert int(chosen.sum()) == min(keep, nonzero)
    if 0 < keep < nonzero:
        assert everything[chosen].min() >= everything[~chosen].max()
    assert [mask.shape for mask in masks] == [tensor.shape for tensor in tensors]


def test_of_equal_entries_the_first_ones_stay() -> None:
    masks = keep_largest([torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 3.0])], 4)
    assert [mask.tolist() for mask in masks] == [[True, True, True], [False, True]]


@pytest.mark.parametrize(
    ("indices", "dtype"),
    [
        ([], torch.uint8),
        ([0], torch.uint8),
        ([254], torch.uint8),
        ([255], torch.uint16),
        ([3, 4, 70_000], torch.uint32),
    ],
)
def test_indices_come_back_from_the_narrowest_steps(indices: list, dtype: torch.dtype) -> None:
    packed = pack(torch.tensor(indices, dtype=torch.int64))
    assert packed.dtype == dtype
    values = torch.ones(len(indices))
    assert unpack(packed, values, torch.Size([300, 300]), "w").tolist() == indices
