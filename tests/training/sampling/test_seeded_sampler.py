# SPDX-License-Identifier: Apache-2.0
"""The order of rows: a permutation decided by seed and epoch, filled up with blank rows."""

import pytest
from datasets import Dataset

from hftune.training.sampling.seeded_sampler import DatasetWithBlankRow, SeededSampler, Strategy

STRATEGIES = ["random", "sequential", "group_by_length"]
LENGTHS = [3, 50, 7, 7, 21, 1, 9, 33, 2, 8, 8, 5, 40, 6, 6, 12, 30, 4, 10, 11, 2, 28, 19]


def sampler(strategy: Strategy, seed: int = 0, epoch: int = 0, multiple: int = 1) -> list[int]:
    made = SeededSampler(len(LENGTHS), strategy, seed, multiple=multiple, lengths=LENGTHS, group=4)
    made.set_epoch(epoch)
    order = list(made)
    assert len(order) == len(made)
    return order


@pytest.mark.parametrize("multiple", [1, 4, 23, 24, 100])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_row_once_then_blanks(strategy: Strategy, multiple: int) -> None:
    order = sampler(strategy, multiple=multiple)
    rows = len(LENGTHS)
    assert sorted(order[:rows]) == list(range(rows))
    assert set(order[rows:]) <= {rows}, "the blank row stands behind the last one"
    assert len(order) % multiple == 0
    assert len(order) - rows < multiple
    assert all(type(index) is int for index in order)


def test_sequential() -> None:
    assert sampler("sequential", epoch=3, multiple=5) == [*range(23), 23, 23]


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_seed_and_epoch_decide(strategy: Strategy) -> None:
    assert sampler(strategy, seed=5, epoch=2) == sampler(strategy, seed=5, epoch=2)
    orders = {tuple(sampler(strategy, epoch=epoch)) for epoch in range(5)}
    assert len(orders) == 5
    assert sampler(strategy, seed=1) != sampler(strategy, seed=2)


def test_same_order_when_iterated_again() -> None:
    made = SeededSampler(10, "random", 0)
    assert list(made) == list(made)


def test_number_of_processes_changes_only_the_blanks() -> None:
    assert sampler("random", multiple=6)[:23] == sampler("random")


def test_groups_hold_alike_lengths() -> None:
    lengths = [1 + index * 37 % 400 for index in range(400)]
    made = SeededSampler(400, "group_by_length", 0, lengths=lengths, group=4)
    order = list(made)
    spread = [
        max(lengths[i] for i in order[start : start + 4])
        - min(lengths[i] for i in order[start : start + 4])
        for start in range(0, 400, 4)
    ]
    # Four random ones of 400 lie about 240 apart; the longest stands first, out of line.
    assert sum(spread[1:]) / 99 < 20
    assert lengths[order[0]] == 400


@pytest.mark.parametrize("labels", [[1, 0, 1], [[-100, 5], [3], [-100]]])
def test_blank_row_counts_nothing(labels: list) -> None:
    rows = Dataset.from_dict({"input_ids": [[1, 2], [3], [4]], "labels": labels})
    filled = DatasetWithBlankRow(rows)
    assert len(filled) == 3
    assert [filled[i] for i in range(3)] == list(rows)
    blank = [-100] * 2 if isinstance(labels[0], list) else -100
    assert filled[3] == {"input_ids": [1, 2], "labels": blank}
