# SPDX-License-Identifier: Apache-2.0
"""Rows packed by tokens: against naive packers, by hand, and what holds of any lengths."""

from collections.abc import Sequence

import numpy as np
import pytest

from hftune.data.packing import (
    FULL,
    SPREAD,
    WINDOW,
    Ints,
    as_many,
    deal,
    first_fit_decreasing,
    in_order,
    pack,
    strata,
    windows,
)

BUDGET = 100
#: Lengths of 1 to 200 rows: of every kind, short ones, and half a batch or more.
CASES = [
    np.random.default_rng(seed).integers(least, most + 1, size).tolist()
    for seed, (least, most, size) in enumerate(
        (least, most, size)
        for least, most in ((1, BUDGET), (1, 9), (40, BUDGET), (7, 7))
        for size in (1, 2, 17, 200)
    )
]


def naive_first_fit(sizes: Sequence[int], budget: int) -> list[int]:
    """Row by row, batch by batch, as it is told in the books, and no wider than may be padded."""
    batches: list[list[int]] = []
    found = []
    for size in sizes:
        for number, batch in enumerate(batches):
            wide = (len(batch) + 1) * batch[0]
            if sum(batch) + size <= budget and wide <= SPREAD * budget:
                batch.append(size)
                found.append(number)
                break
        else:
            batches.append([size])
            found.append(len(batches) - 1)
    return found


def naive_deal(sizes: Sequence[int], number: int) -> list[int]:
    """Each to the least loaded, the first of equals."""
    loads, found = [0] * number, []
    for size in sizes:
        least = loads.index(min(loads))
        loads[least] += size
        found.append(least)
    return found


def drawn(kind: str, rows: int = 15_000) -> tuple[Ints, int]:
    """Lengths of one kind, and a budget for them."""
    rng = np.random.default_rng(0)
    if kind == "texts":
        return np.clip(rng.lognormal(3, 0.8, rows), 3, 512).astype(np.int64), 4096
    if kind == "documents":
        return np.clip(rng.lognormal(6.5, 1, rows), 3, 4096).astype(np.int64), 8192
    if kind == "any":
        return rng.integers(1, 4097, rows), 4096
    if kind == "few long":
        return np.where(rng.random(rows) < 0.01, 3000, rng.integers(3, 20, rows)), 4096
    return np.full(rows, 128), 1024  # blocks of plain text


@pytest.mark.parametrize(("one", "other"), list(zip(CASES, CASES[5:] + CASES[:5], strict=True)))
def test_first_fit_decreasing(one: list[int], other: list[int]) -> None:
    """Windows of unequal length, side by side, are each packed as alone."""
    both = [np.sort(np.array(lengths))[::-1] for lengths in (one, other)]
    packed = first_fit_decreasing(both, BUDGET)
    assert [batches.tolist() for batches in packed] == [
        naive_first_fit(lengths.tolist(), BUDGET) for lengths in both
    ]


def test_first_fit_decreasing_by_hand() -> None:
    """7 and 3, 6 and 4, then 5 and 5; the 2 finds room nowhere."""
    assert first_fit_decreasing([np.array([7, 6, 5, 5, 4, 3, 2])], 10)[0].tolist() == [
        0, 1, 2, 2, 1, 0, 3,
    ]  # fmt: skip
    assert first_fit_decreasing([], 10) == []


def test_first_fit_decreasing_is_not_padded_far() -> None:
    """Beside a row of 50 a batch of 100 has 16 places, so that 35 short ones open a second."""
    lengths = np.array([50] + [1] * 50)
    batches = first_fit_decreasing([lengths], 100)[0]
    assert np.bincount(batches).tolist() == [16, 35]


@pytest.mark.parametrize("number", [1, 7, 64])
@pytest.mark.parametrize("lengths", CASES)
def test_deal(lengths: list[int], number: int) -> None:
    lengths = sorted(lengths, reverse=True)
    found = naive_deal(lengths, number)
    loads = np.bincount(found, weights=lengths, minlength=number)
    batches = deal(lengths, number, BUDGET)
    if loads.max() > BUDGET:
        assert batches is None
    else:
        assert batches is not None
        assert batches.tolist() == found


def test_strata_by_hand() -> None:
    """80 tokens a batch: ten rows of 80, one each, then ten batches of 80 rows of 1.

    Mixed, a batch would have 40.5 rows on average, padded to 80: 3,240 places where 640 may be.
    """
    lengths = np.array([80] * 10 + [1] * 800)
    assert strata(lengths, 20) == [(0, 0), (10, 10), (810, 20)]
    assert strata(np.full(64, 16), 8) == [(0, 0), (64, 8)]


@pytest.mark.parametrize("lengths", CASES)
def test_windows_follow_each_other(lengths: list[int]) -> None:
    cut = list(windows(np.array(lengths), 10 * BUDGET))
    assert [start for start, _, _ in cut] == [0, *(end for _, end, _ in cut[:-1])]
    assert cut[-1][1] == len(lengths)


def test_windows_hold_equally_much() -> None:
    tokens, budget = drawn("texts", 200_000)
    cut = list(windows(tokens, budget))
    batches = sum(number for _, _, number in cut)
    assert len(cut) == round(batches / WINDOW)
    assert batches == int(np.ceil(tokens.sum() / (FULL * budget)))
    held = [tokens[start:end].sum() / number for start, end, number in cut]
    assert np.ptp(held) < 512 / WINDOW * 2  # a row at either end


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["texts", "documents", "any", "few long", "blocks"])
def test_packed(kind: str, padded: bool) -> None:
    """Each row once, no batch over the budget, none padded far, no row beyond its window."""
    tokens, budget = drawn(kind)
    batches = pack(tokens[:, None], budget, np.random.default_rng(1), padded=padded)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(tokens)))
    held = np.array([tokens[batch].sum() for batch in batches])
    places = np.array([len(batch) * tokens[batch].max() for batch in batches])
    assert (places if padded else held).max() <= budget
    assert places.max() <= SPREAD * budget
    window_of = np.repeat(*np.transpose([(n, end - start) for n, (start, end, _) in
                                         enumerate(windows(tokens, budget))]))  # fmt: skip
    assert all(len(set(window_of[batch])) == 1 for batch in batches)
    again = pack(tokens[:, None], budget, np.random.default_rng(1), padded=padded)
    assert [batch.tolist() for batch in again] == [batch.tolist() for batch in batches]
    other = pack(tokens[:, None], budget, np.random.default_rng(2), padded=padded)
    assert [batch.tolist() for batch in other] != [batch.tolist() for batch in batches]
    alike = {frozenset(batch) for batch in other} == {frozenset(batch) for batch in batches}
    if padded or kind in ("texts", "documents", "blocks"):
        assert alike == padded, "what is dealt is dealt anew, what is sorted in another order"


@pytest.mark.parametrize(
    ("kind", "least"), [("texts", 0.98), ("documents", 0.98), ("blocks", 0.98)]
)
def test_batches_are_full(kind: str, least: float) -> None:
    tokens, budget = drawn(kind, 100_000)
    batches = pack(tokens[:, None], budget, np.random.default_rng(0))
    assert tokens.sum() / (len(batches) * budget) > least


def test_padded_batches_are_full() -> None:
    tokens, budget = drawn("texts", 100_000)
    batches = pack(tokens[:, None], budget, np.random.default_rng(0), padded=True)
    assert sum(len(b) * tokens[b].max() for b in batches) / (len(batches) * budget) > 0.98


def test_dealt_rows_are_of_every_length() -> None:
    """Where no row is far longer than the rest, batches are as those of rows drawn at random."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, 60, 100_000)
    batches = pack(tokens[:, None], 4096, rng)
    rows = np.array([len(batch) for batch in batches])
    assert rows.std() < 0.02 * rows.mean()
    held = np.array([tokens[batch].sum() for batch in batches])
    assert held.std() < 0.01 * held.mean()
    first = np.array([tokens[batch].mean() for batch in batches])
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.2, "their order is random"


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("lengths", CASES)
def test_in_order(lengths: list[int], padded: bool) -> None:
    """Batches follow each other, and the first row of the next one would not have fitted."""
    batches = in_order(np.array(lengths)[:, None], BUDGET, padded=padded)
    assert np.concatenate(batches).tolist() == list(range(len(lengths)))
    tokens = np.array(lengths)

    def held(rows: Ints) -> int:
        return int(len(rows) * tokens[rows].max() if padded else tokens[rows].sum())

    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        assert held(batch) <= BUDGET
        if following is not None:
            assert held(np.append(batch, following[0])) > BUDGET


def test_sources_and_targets_are_padded_apart() -> None:
    """4 + 1 and 1 + 4 tokens make 2 x (4 + 4) places."""
    sizes = np.array([[4, 1], [1, 4]])
    assert len(in_order(sizes, 15, padded=True)) == 2
    assert len(in_order(sizes, 16, padded=True)) == 1
    assert len(in_order(sizes, 10)) == 1


@pytest.mark.parametrize("more", [0, 1, 30])
@pytest.mark.parametrize("lengths", CASES)
def test_as_many(lengths: list[int], more: int) -> None:
    batches = pack(np.array(lengths)[:, None], BUDGET, np.random.default_rng(0))
    split = as_many(batches, len(batches) + more)
    assert len(split) == min(len(batches) + more, len(lengths))
    assert all(len(batch) for batch in split)
    assert sorted(np.concatenate(split).tolist()) == list(range(len(lengths)))


def test_one_long_row_is_not_padded_far() -> None:
    """Beside a row of 50 a batch would have room for 45 rows of 1, padded to 50 each."""
    tokens = np.array([50] + [1] * 1000)
    batches = pack(tokens[:, None], BUDGET, np.random.default_rng(0))
    assert max(len(batch) * tokens[batch].max() for batch in batches) <= SPREAD * BUDGET


def test_a_row_beyond_the_budget() -> None:
    with pytest.raises(ValueError, match="a row of 11 tokens, and a batch holds 10"):
        pack(np.array([[3], [11]]), 10, np.random.default_rng(0))


def test_one_batch_where_all_fits() -> None:
    batches = pack(np.array([[60], [40]]), 100, np.random.default_rng(0))
    assert [batch.tolist() for batch in batches] == [[0, 1]]
