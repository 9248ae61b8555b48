# SPDX-License-Identifier: Apache-2.0
"""Differences of weights, added up by hand."""

import pytest
import torch
from torch import Tensor

from hftune.core.errors import HftuneError
from hftune.models.combine import combine


def state(weights: list[float], head: list[float]) -> dict[str, Tensor]:
    return {
        "w": torch.tensor(weights), "head": torch.tensor(head), "step": torch.tensor(3)
    }  # fmt: skip


BASE = state([1.0, 1.0, 1.0, 1.0], [0.0, 0.0])
ONE = state([2.0, 1.5, 0.0, 1.0], [4.0, 0.0])
TWO = state([3.0, 0.0, 0.5, 1.0], [0.0, 8.0])


def combined(weights: list[float], **options: object) -> dict[str, Tensor]:
    return dict(combine(BASE, [ONE, TWO], weights, new={"head"}, **options))  # type: ignore[arg-type]


def test_linear() -> None:
    """Differences 1, 0.5, -1, 0 and 2, -1, -0.5, 0; the new head is a mean, not a sum."""
    both = combined([0.5, 2.0])
    assert both["w"].tolist() == [1 + 0.5 + 4, 1 + 0.25 - 2, 1 - 0.5 - 1, 1]
    torch.testing.assert_close(both["head"], torch.tensor([0.5 * 4, 2 * 8]) / 2.5)
    assert both["step"] == 3


def test_one_part_of_weight_one_comes_back() -> None:
    both = dict(combine(BASE, [ONE], [1.0], new={"head"}))
    assert all(torch.equal(both[name], ONE[name]) for name in ONE)


def test_half_of_the_entries() -> None:
    """The two largest of each stay: 1, 0, -1, 0 and 2, -1, 0, 0."""
    both = combined([1.0, 1.0], combination="magnitude_prune", density=0.5)
    assert both["w"].tolist() == [4, 0, 0, 1]


def test_ties() -> None:
    """Of those, each entry takes the sign that weighs more, and the mean of what has that sign."""
    both = combined([1.0, 1.0], combination="ties", density=0.5)
    assert both["w"].tolist() == [1 + 1.5, 1 - 1, 1 - 1, 1]


def test_dare_keeps_the_mean() -> None:
    """Half of the entries go, the others double."""
    start, end = {"w": torch.zeros(20_000)}, {"w": torch.ones(20_000)}
    torch.manual_seed(0)
    (_, value), = combine(start, [end], [1.0], combination="dare_linear", density=0.5)  # fmt: skip
    assert set(value.tolist()) == {0.0, 2.0}
    assert value.mean() == pytest.approx(1, abs=0.03)


def test_other_shapes_are_named() -> None:
    with pytest.raises(HftuneError, match=r"w has other shapes in base and runs: \(4,\), \(2,\)"):
        dict(combine(BASE, [{**ONE, "w": torch.zeros(2)}], [1.0]))
