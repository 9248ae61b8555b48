# SPDX-License-Identifier: Apache-2.0
"""Draws by words, and once more."""

import pytest
import torch

from hftune.core.rng import RngState, generator_of, normal_like, process_index


def test_words_decide() -> None:
    value = torch.zeros(5, dtype=torch.float64)
    assert torch.equal(normal_like(value, 1, "a", 2), normal_like(value, 1, "a", 2))
    assert normal_like(value, 1, "a", 2).dtype == torch.float64
    others = [(1, "a", 3), (2, "a", 2), (1, "b", 2), (1, "a2")]
    for words in others:
        assert not torch.equal(normal_like(value, 1, "a", 2), normal_like(value, *words))
    assert generator_of("cpu", 1).initial_seed() != generator_of("cpu", "1").initial_seed()


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    normal_like(torch.zeros(3), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_once_more() -> None:
    rng_state = RngState(torch.device("cpu"))
    first = torch.rand(3)
    rng_state.restore()
    assert torch.equal(torch.rand(3), first)


def test_one_process() -> None:
    assert process_index() == 0


@pytest.mark.gpu
def test_once_more_on_a_gpu() -> None:
    device = torch.device("cuda")
    rng_state = RngState(device)
    first = torch.rand(3, device=device)
    rng_state.restore()
    assert torch.equal(torch.rand(3, device=device), first)
    value = torch.zeros(3, device=device)
    assert torch.equal(normal_like(value, 1), normal_like(value, 1))
