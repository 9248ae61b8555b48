# SPDX-License-Identifier: Apache-2.0
"""Easy rows first: no row before its turn, all of them in the end, pacing by hand."""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch

from hftune.core.registry import named
from hftune.data.sampling import DIFFICULTIES, PACINGS, Difficulty, Pacing
from hftune.data.sampling.curriculum import Curriculum, known_share, rarity
from hftune.data.sampling.curriculum_stages import flat_stretches
from hftune.data.sampling.row_sampler import EpochPosition

ROWS = 120
DIFFICULTY = np.random.default_rng(1).permutation(ROWS).astype(np.float64)
#: 15 steps of 8 rows an epoch, 4 epochs.
STEPS, TOTAL, GROUP = 15, 60, 8


def epoch(curriculum: Curriculum, number: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed + number)
    return curriculum.rows(generator, EpochPosition(number, STEPS, TOTAL, GROUP))


@pytest.mark.parametrize("hardest_first", [False, True])
@pytest.mark.parametrize("pacing", PACINGS)
def test_no_row_before_its_turn(pacing: Pacing, hardest_first: bool) -> None:
    """Each step's rows are among the easiest ``n(t)``, counted here from the definition."""
    curriculum = Curriculum(DIFFICULTY, pacing=pacing, duration=0.5, hardest_first=hardest_first)
    rank = ROWS - 1 - DIFFICULTY if hardest_first else DIFFICULTY
    formula = {
        "linear": lambda x: 0.2 + 0.8 * x,
        "root": lambda x: math.sqrt(0.04 + 0.96 * x),
        "exponential": lambda x: 0.2 ** (1 - x),
        "staged": lambda x: 1 / 3 if x < 1 / 3 else 2 / 3 if x < 2 / 3 else 1,
    }[pacing]
    reached = []
    for number in range(4):
        order = epoch(curriculum, number)
        assert len(order) == curriculum.size == ROWS
        for step in range(STEPS):
            done = number * STEPS + step
            known = math.ceil(ROWS * formula(min(1, done / 30)) - 1e-6)
            hardest = max(rank[row] for row in order[step * GROUP : (step + 1) * GROUP])
            assert hardest < known
            reached.append(hardest / known)
    assert np.mean(reached) > 0.8, "and they reach up to there"


def test_easiest_rows_come_first() -> None:
    order = epoch(Curriculum(DIFFICULTY, start=GROUP / ROWS, duration=1.0), 0)
    assert sorted(DIFFICULTY[order[:GROUP]]) == list(range(GROUP))


def test_once_all_are_known_an_epoch_has_each_row_once() -> None:
    curriculum = Curriculum(DIFFICULTY, duration=0.5)
    for number in (2, 3):
        assert sorted(epoch(curriculum, number)) == list(range(ROWS))
    assert epoch(curriculum, 2) != epoch(curriculum, 3)


def test_known_rows_take_turns() -> None:
    """With a pool that does not grow, no row comes twice more often than another."""
    staged = Curriculum(DIFFICULTY, pacing="staged", stages=3, duration=1.0)
    times = Counter(epoch(staged, 0))
    assert set(times) == set(np.flatnonzero(DIFFICULTY < 40))
    assert set(times.values()) == {3}


def test_seed_and_epoch_decide() -> None:
    one, same = Curriculum(DIFFICULTY, seed=3), Curriculum(DIFFICULTY, seed=3)
    assert [epoch(one, number) for number in range(3)] == [epoch(same, n) for n in range(3)]
    assert epoch(one, 0, seed=0) != epoch(one, 0, seed=1)


def test_equally_hard_rows_stand_in_random_order() -> None:
    """Half of the rows are easy; the first fifth must not be the first of the file."""
    hard = np.repeat([0.0, 1.0], ROWS // 2)
    known = set(epoch(Curriculum(hard, start=0.2, duration=1.0), 0)[:GROUP])
    assert max(known) < ROWS // 2
    pools = {tuple(Curriculum(hard, seed=seed).order[:24]) for seed in range(4)}
    assert len(pools) == 4


@pytest.mark.parametrize("pacing", [name for name, row in PACINGS.items() if not row.in_stages])
def test_pacing_goes_from_start_to_all(pacing: Pacing) -> None:
    shares = [known_share(pacing, x, 0.2, 3) for x in np.linspace(0, 1, 20)]
    assert shares[0] == pytest.approx(0.2)
    assert shares[-1] == pytest.approx(1.0)
    assert shares == sorted(shares)


@pytest.mark.parametrize("name", DIFFICULTIES)
def test_a_difficulty_is_measured_on_tokens_or_given(name: Difficulty) -> None:
    """Measured, a row is harder than those whose tokens it has, too."""
    row = DIFFICULTIES[name]
    assert (row.target is None) == (row.reads_column or row.needs_reference)
    assert not row.by_class
    if row.target is not None:
        tokens = pa.chunked_array([[[5], [5, 6], [5, 6, 7]]])
        assert (np.diff(named(row.target)(tokens)) > 0).all()


def test_rarity_is_the_negative_log_likelihood_of_the_tokens() -> None:
    rows = [[1, 2, 1], [1, 3], [1]]
    p = {1: 4 / 6, 2: 1 / 6, 3: 1 / 6}
    expected = [-sum(math.log(p[token]) for token in row) for row in rows]
    np.testing.assert_allclose(rarity(pa.chunked_array([rows[:2], rows[2:]])), expected)


@pytest.mark.parametrize("greater", [False, True])
def test_a_stage_ends_after_exactly_so_many_flat_evaluations(greater: bool) -> None:
    losses = [3.0, 2.0, 2.0, 2.5, 1.9, 1.9, 1.95, 1.9, 2.1, math.nan, 1.8]
    #         best best   1    2 ^ best  1    2 ^   1    2 ^    1   best
    values = [(10 * (i + 1), -loss if greater else loss) for i, loss in enumerate(losses)]
    assert flat_stretches(values, 2, greater_is_better=greater) == [40, 70, 90]
    assert flat_stretches(values, 3, greater_is_better=greater) == [80]
    assert flat_stretches(values, 1, greater_is_better=greater) == [30, 40, 60, 70, 80, 90, 100]
    assert flat_stretches(values[:3], 2, greater_is_better=greater) == []


def test_stages_that_the_metric_ends_begin_with_an_epoch() -> None:
    """Each epoch has the first k thirds, where k - 1 stages were over when it began."""
    curriculum = Curriculum(DIFFICULTY, pacing="staged", stages=3, patience=2)
    third = ROWS // 3
    for ends, known in (
        ([], [1, 1, 1, 1]),
        ([STEPS], [1, 2, 2, 2]),
        ([STEPS + 1, 2 * STEPS], [1, 1, 3, 3]),  # the first of them in the middle of an epoch
        ([STEPS, 2 * STEPS, 3 * STEPS], [1, 2, 3, 3]),
    ):
        curriculum.ends = ends
        for number, stages in enumerate(known):
            drawn = epoch(curriculum, number)
            assert set(drawn) == set(np.flatnonzero(DIFFICULTY // third < stages))
            assert len(drawn) == ROWS
