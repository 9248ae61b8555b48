# SPDX-License-Identifier: Apache-2.0
"""Shares add up, draws follow them, and sources that do not go together are named."""

import numpy as np
import pytest
from datasets import Dataset

from hftune.core.errors import HftuneError, RecipeError
from hftune.data.mixture import interleaved, shares, stacked


@pytest.mark.parametrize(
    ("weights", "sizes", "expected"),
    [
        ([None, None], [1, 2], None),
        ([1, 3], [5, 5], [0.25, 0.75]),
        ([0.2, 0.2], [5, 500], [0.5, 0.5]),
        ([None, 0.4, None], [10, 5, 20], [0.2, 0.4, 0.4]),
    ],
)
def test_shares(weights: list, sizes: list[int], expected: list[float] | None) -> None:
    assert shares(weights, sizes) == (expected and pytest.approx(expected))


@pytest.mark.parametrize(
    ("weights", "message"),
    [([0, 1], "above 0, got 0"), ([-0.5, None], "above 0, got -0.5"),
     ([None, 1.0], "weights of 1 leave nothing")],
)  # fmt: skip
def test_impossible_weights(weights: list, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        shares(weights, [3, 3])


def numbers(start: int, stop: int) -> Dataset:
    return Dataset.from_dict({"text": [str(number) for number in range(start, stop)]})


def test_draws_follow_the_shares_and_the_order_of_each_source() -> None:
    parts = [numbers(0, 4000), numbers(10_000, 14_000)]
    mixed = [int(text) for text in interleaved(parts, [0.25, 0.75], "first_exhausted", 1)["text"]]
    small = [number for number in mixed if number < 10_000]
    large = [number for number in mixed if number >= 10_000]
    assert small == list(range(len(small)))
    assert large == list(range(10_000, 14_000)), "the first to run out gives all its rows"
    # Binomial: a share of 0.25 over about 5333 draws has a standard deviation below 0.006.
    assert len(small) / len(mixed) == pytest.approx(0.25, abs=0.03)
    again = interleaved(parts, [0.25, 0.75], "first_exhausted", 1)["text"][:]
    other = interleaved(parts, [0.25, 0.75], "first_exhausted", 2)["text"][:]
    assert [int(text) for text in again] == mixed != [int(text) for text in other]


def test_all_exhausted_repeats_the_small_source() -> None:
    mixed = interleaved([numbers(0, 10), numbers(100, 300)], [0.5, 0.5], "all_exhausted", 0)
    counts = np.unique(mixed["text"][:], return_counts=True)
    assert set(counts[0]) == {str(n) for n in [*range(10), *range(100, 300)]}
    assert counts[1].max() > 10


def test_stacked_fills_what_a_source_lacks() -> None:
    one = Dataset.from_dict({"messages": [[{"role": "user", "content": "a"}]]})
    calls = [{"role": "user", "content": "b", "name": "x"}]
    two = Dataset.from_dict({"messages": [calls], "tools": ["[]"]})
    rows = stacked([one, two], ["a", "b"])
    assert rows["messages"][0] == [{"role": "user", "content": "a", "name": None}]
    assert rows["messages"][1] == calls
    assert rows["tools"][:] == [None, "[]"]


def test_other_shapes_and_types_are_refused() -> None:
    pairs = Dataset.from_dict({"prompt": ["a"], "completion": ["b"]})
    with pytest.raises(HftuneError, match=r"b.csv gives completion and prompt, a.csv gives text"):
        stacked([numbers(0, 2), pairs], ["a.csv", "b.csv"])
    with pytest.raises(HftuneError, match=r"a.csv, b.csv: types of cells differ"):
        stacked([numbers(0, 2), Dataset.from_dict({"text": [1.5]})], ["a.csv", "b.csv"])
