# SPDX-License-Identifier: Apache-2.0
"""What an epoch draws: exact counts by class, torch's own weighted draw, bounds of chance."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import WeightedRandomSampler

from hftune.core.registry import named
from hftune.data.sampling import SAMPLINGS, SamplingName
from hftune.data.sampling.row_sampler import (
    EpochPosition,
    RowSampler,
    Weighted,
    balanced,
    oversample,
    undersample,
)

#: 70, 25 and 5 rows; class 2 has none.
CLASSES = np.array([0] * 70 + [1] * 25 + [3] * 5)


def drawn(draw: RowSampler, seed: int = 0) -> list[int]:
    indices = draw.rows(torch.Generator().manual_seed(seed), EpochPosition())
    assert len(indices) == draw.size
    assert all(type(index) is int for index in indices)
    return indices


@pytest.mark.parametrize("name", SAMPLINGS)
def test_the_row_makes_the_row_sampler(name: SamplingName) -> None:
    """Of classes or of weights, and what it draws is what it expects: 200 epochs on average."""
    row = SAMPLINGS[name]
    assert row.by_class != row.reads_column
    weights = np.random.default_rng(3).random(len(CLASSES))
    sampler: RowSampler = named(str(row.target))(CLASSES if row.by_class else weights)
    expected = sampler.expected()
    assert expected is not None
    assert expected.sum() == pytest.approx(sampler.size)
    assert sampler.callbacks() == sampler.remarks(0) == []
    counts = np.mean(
        [np.bincount(drawn(sampler, seed), minlength=len(CLASSES)) for seed in range(200)], axis=0
    )
    np.testing.assert_allclose(counts, expected, atol=5 * math.sqrt(expected.max() / 200))


def test_weighted_draws_what_torchs_sampler_draws() -> None:
    weights = np.random.default_rng(0).random(200)
    theirs = WeightedRandomSampler(
        weights.tolist(), 200, generator=torch.Generator().manual_seed(7)
    )
    assert drawn(Weighted(weights), seed=7) == list(theirs)


def test_a_row_without_weight_is_never_drawn() -> None:
    assert set(drawn(Weighted([0.0, 1.0, 0.0, 3.0] * 50))) <= set(range(1, 200, 2))


def test_shares_of_a_weighted_draw() -> None:
    """10,000 draws; each class within four standard deviations of the binomial."""
    weights = np.array([1.0, 2.0, 7.0])[np.arange(10_000) % 3]
    expected = Weighted(weights).expected()
    assert expected.sum() == pytest.approx(10_000)
    counts = np.bincount(np.array(drawn(Weighted(weights))) % 3)
    for cls in range(3):
        mean = expected[np.arange(10_000) % 3 == cls].sum()
        assert abs(counts[cls] - mean) < 4 * np.sqrt(mean * (1 - mean / 10_000))


def test_balanced_makes_classes_equally_likely() -> None:
    draw = balanced(CLASSES)
    sums = np.bincount(CLASSES, weights=draw.expected())
    np.testing.assert_allclose(sums, [100 / 3, 100 / 3, 0, 100 / 3])
    counts = sum(np.bincount(CLASSES[drawn(draw, seed)], minlength=4) for seed in range(100))
    spread = 4 * np.sqrt(10_000 * 1 / 3 * 2 / 3)
    assert np.all(np.abs(counts[[0, 1, 3]] - 10_000 / 3) < spread)


def test_oversample_counts_are_exact() -> None:
    draw = oversample(CLASSES)
    times = np.bincount(drawn(draw), minlength=100)
    assert draw.size == 210
    assert np.bincount(CLASSES, weights=times).tolist() == [70, 70, 0, 70]
    assert set(times[:70]) == {1}
    assert set(times[70:95]) == {2, 3}, "25 rows twice, and 20 of them once more"
    assert set(times[95:]) == {14}
    np.testing.assert_allclose(draw.expected(), np.repeat([1, 2.8, 14], [70, 25, 5]))


def test_undersample_counts_are_exact() -> None:
    draw = undersample(CLASSES)
    times = np.bincount(drawn(draw), minlength=100)
    assert draw.size == 15
    assert np.bincount(CLASSES, weights=times).tolist() == [5, 5, 0, 5]
    assert times.max() == 1
    np.testing.assert_allclose(draw.expected(), np.repeat([5 / 70, 5 / 25, 1], [70, 25, 5]))


def test_undersample_comes_to_see_every_row() -> None:
    seen = {row for seed in range(100) for row in drawn(undersample(CLASSES), seed)}
    assert seen == set(range(100))


@pytest.mark.parametrize("draw", [balanced(CLASSES), oversample(CLASSES), undersample(CLASSES)])
def test_the_seed_decides_and_classes_are_mixed(draw: RowSampler) -> None:
    assert drawn(draw, 3) == drawn(draw, 3)
    assert len({tuple(drawn(draw, seed)) for seed in range(5)}) == 5
    order = CLASSES[drawn(draw)]
    assert np.count_nonzero(np.diff(order)) > draw.size / 3, "not class after class"
