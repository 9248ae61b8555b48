# SPDX-License-Identifier: Apache-2.0
"""Rows put into batches that hold so many tokens, in time linear in the rows.

An epoch's order is cut into windows of :data:`WINDOW` batches; a row stays in the window where
chance has put it. Inside, rows are dealt: longest first, each into the batch that holds the least.
So batches hold equally many tokens, of rows of every length, and a step counts as it would with
rows drawn at random. Far longer rows are dealt apart, since outside the layers a batch is padded to
its longest row. Where a batch would spill over, as with rows of half a batch, first-fit-decreasing
packs the window. Where the layers work on padding too, rows of like length come together.

Sources: Graham, "Bounds on Multiprocessing Timing Anomalies", 1969 (longest first); Johnson,
"Near-Optimal Bin Packing Algorithms", 1973 (first-fit-decreasing).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapreplace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

#: Batches of a window.
WINDOW = 256
#: How full batches are meant to be. A little room lets rows find their place.
FULL = 0.99
#: Outside the layers a batch is padded, to no more than so many times the budget.
SPREAD = 8
#: Rows are dealt out as if they were longer by up to this share, so that no two epochs are alike.
CHANCE = 0.1


def pack(sizes: Ints, budget: int, rng: np.random.Generator, *, padded: bool = False) -> list[Ints]:
    """Return batches of rows, each row in one.

    Args:
        sizes: Tokens of the rows in the epoch's order, shape ``(N, parts)``: those of a source and
            a target are counted apart, since they are padded apart.
        budget: Tokens that a batch may hold, no fewer than the longest row has.
        rng: Deals rows, and orders the batches of a window.
        padded: Whether a batch holds its rows times the longest, in place of the sum.

    Returns:
        Places in the order, each batch's own.

    Raises:
        ValueError: A row is longer than the budget.
    """
    tokens = sizes.sum(1)
    if tokens.max(initial=0) > budget:
        raise ValueError(f"a row of {tokens.max()} tokens, and a batch holds {budget}")
    cut = list(windows(tokens, budget))
    if padded:
        found = [
            [rows[batch] for batch in in_order(sizes[rows], budget, padded=True)]
            for rows in _descending(tokens, cut)
        ]
    else:
        found = _tight(tokens, budget, cut, rng)
    return [batches[place] for batches in found for place in rng.permutation(len(batches))]


def windows(tokens: Ints, budget: int) -> Iterator[tuple[int, int, int]]:
    """Yield where each window begins and ends, and how many batches its rows should fill.

    Args:
        tokens: Of the rows in their order, shape ``(N,)``.
        budget: Tokens that a batch may hold.
    """
    whole = int(tokens.sum())
    batches = 1 if whole <= budget else math.ceil(whole / (FULL * budget))
    number = max(1, round(batches / WINDOW))
    shares = np.arange(number + 1) * batches // number
    ends = np.searchsorted(np.cumsum(tokens), whole * shares / batches, side="right")
    ends[-1] = len(tokens)
    for window in range(number):
        start, end = int(ends[window]), int(ends[window + 1])
        if end > start:
            yield start, end, int(shares[window + 1] - shares[window])


def in_order(sizes: Ints, budget: int, *, padded: bool = False) -> list[Ints]:
    """Return batches of rows that follow each other, as many in each as it holds.

    Args:
        sizes: Tokens of the rows, shape ``(N, parts)``; see :func:`pack`.
        budget: Tokens that a batch may hold.
        padded: Whether a batch holds its rows times the longest.
    """
    total, sums = len(sizes), np.cumsum(sizes.sum(1))
    starts = [0]
    while (start := starts[-1]) < total:
        if padded:
            most = max(1, budget // max(1, int(sizes[start].sum())))
            widest = np.maximum.accumulate(sizes[start : start + most]).sum(1)
            rows = np.searchsorted(widest * np.arange(1, len(widest) + 1), budget, side="right")
        else:
            before = sums[start - 1] if start else 0
            rows = np.searchsorted(sums, before + budget, side="right") - start
        starts.append(start + int(rows))
    return np.split(np.arange(total), starts[1:-1])


def _tight(
    tokens: Ints, budget: int, cut: Sequence[tuple[int, int, int]], rng: np.random.Generator
) -> list[list[Ints]]:
    """Deal the rows of each window out, or pack them where a batch would spill over."""
    by_chance = _descending(tokens * rng.uniform(1, 1 + CHANCE, len(tokens)), cut)
    dealt = [
        _dealt(tokens[rows], number, budget)
        for rows, (_, _, number) in zip(by_chance, cut, strict=True)
    ]
    spilt = _descending(
        tokens, [c for c, batches in zip(cut, dealt, strict=True) if batches is None]
    )
    packed = zip(spilt, first_fit_decreasing([tokens[rows] for rows in spilt], budget), strict=True)
    return [
        _grouped(*next(packed)) if batches is None else _grouped(rows, batches)
        for rows, batches in zip(by_chance, dealt, strict=True)
    ]


def _descending(lengths: NDArray[Any], cut: Iterable[tuple[int, int, int]]) -> list[Ints]:
    """The rows of each window, longest first."""
    return [start + np.argsort(-lengths[start:end], kind="stable") for start, end, _ in cut]


def _dealt(tokens: Ints, number: int, budget: int) -> Ints | None:
    """Deal the strata of a window out, over one batch less, so many, or a hundredth more."""
    least = max(number - 1, math.ceil(tokens.sum() / budget))
    found, batches, spare = [], 0, number - least + number // 100
    for (start, since), (end, until) in pairwise(strata(tokens, least)):
        for more in range(spare + 1):
            part = deal(tokens[start:end].tolist(), until - since + more, budget)
            if part is not None and _widest(tokens[start:end], part) <= SPREAD * budget:
                break
        else:
            return None
        found.append(part + batches)
        batches, spare = batches + until - since + more, spare - more
    return np.concatenate(found)


def _widest(tokens: Ints, batches: Ints) -> int:
    """Return the most places that a batch has when it is padded."""
    order = np.argsort(batches, kind="stable")
    starts = np.flatnonzero(np.diff(batches[order], prepend=-1))
    longest = np.maximum.reduceat(tokens[order], starts)
    return int((longest * np.diff(starts, append=len(order))).max(initial=0))


def strata(tokens: Ints, number: int) -> list[tuple[int, int]]:
    """Return where rows end that are dealt together, and how many batches those before fill.

    Together means that a batch padded to the longest of them stays below :data:`SPREAD` budgets.

    Args:
        tokens: Of the rows, longest first but for chance, shape ``(N,)``.
        number: Batches for all of them.

    Returns:
        Numbers of rows and of batches, from ``(0, 0)`` to ``(N, number)``.
    """
    share = tokens.sum() / number
    rows = np.searchsorted(np.cumsum(tokens), np.arange(number + 1) * share, side="right")
    rows[-1] = len(tokens)
    ends = [0]
    while (since := ends[-1]) < number:
        each = (rows[since + 1 :] - rows[since]) / np.arange(1, number - since + 1)
        longest = tokens[rows[since] :].max(initial=0)
        alike = np.flatnonzero(each * longest <= SPREAD * share)
        ends.append(since + 1 + int(alike.max(initial=0)))
    return [(int(rows[end]), end) for end in ends]


def deal(tokens: Sequence[int], number: int, budget: int) -> Ints | None:
    """Return the batch of each row: the one that holds the least when its turn comes.

    Args:
        tokens: Of the rows; batches are most alike where the longest come first.
        number: How many batches there are.
        budget: Tokens that a batch may hold.

    Returns:
        Their numbers, shape ``(N,)``; None where a batch would hold more than the budget.
    """
    bits = number.bit_length()
    emptiest = list(range(number))  # a heap of numbers: what a batch holds, then which it is
    most, batches = (budget + 1) << bits, []
    for size in tokens:
        batch = emptiest[0] + (size << bits)
        if batch >= most:
            return None
        heapreplace(emptiest, batch)
        batches.append(batch)
    return np.array(batches, dtype=np.int64) & ((1 << bits) - 1)


def first_fit_decreasing(windows: Sequence[Ints], budget: int) -> list[Ints]:
    """Return the batch of each row: the first one that has room for it.

    The windows are packed side by side, so that the steps are those of the longest one.

    Args:
        windows: Tokens of the rows of each window, longest first, at least 1.
        budget: Tokens that a batch may hold; and it has no more than ``SPREAD * budget`` places
            when it is padded to its first row.

    Returns:
        Numbers of batches, an array as long as each window.
    """
    side = np.arange(len(windows))
    sizes = np.zeros((max(map(len, windows), default=0), len(windows)), dtype=np.int64)
    for window, tokens in enumerate(windows):
        sizes[: len(tokens), window] = tokens
    room = np.full((len(windows), 64), budget)
    rows = np.full(room.shape, len(sizes))  # that may come in yet
    batches = np.zeros_like(sizes)
    used = 0
    for rank, tokens in enumerate(sizes):
        if used == room.shape[1]:
            room = np.concatenate([room, np.full_like(room, budget)], axis=1)
            rows = np.concatenate([rows, np.full_like(rows, len(sizes))], axis=1)
        fits = (room[:, : used + 1] >= tokens[:, None]) & (rows[:, : used + 1] > 0)
        first = fits.argmax(1)
        opens = room[side, first] == budget
        rows[side[opens], first[opens]] = SPREAD * budget // np.maximum(tokens[opens], 1)
        room[side, first] -= tokens
        rows[side, first] -= 1
        batches[rank] = first
        used = max(used, int(first.max()) + 1)
    return [batches[: len(tokens), window] for window, tokens in enumerate(windows)]


def as_many(batches: list[Ints], number: int) -> list[Ints]:
    """Return ``number`` batches: those of most rows are halved until there are so many.

    Args:
        batches: No more than ``number``.
        number: How many there shall be; fewer come back where no batch has two rows.
    """
    batches = list(batches)
    while len(batches) < number:
        largest = max(range(len(batches)), key=lambda place: len(batches[place]))
        rows = batches[largest]
        if len(rows) < 2:
            break
        batches[largest : largest + 1] = [rows[::2], rows[1::2]]
    return batches


def _grouped(rows: Ints, batches: Ints) -> list[Ints]:
    """The rows of each batch, in their order."""
    order = np.argsort(batches, kind="stable")
    return np.split(rows[order], np.flatnonzero(np.diff(batches[order])) + 1)
