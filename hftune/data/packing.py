# SPDX-License-Identifier: Apache-2.0
"""Put rows into batches of so many tokens, in time linear in the rows.

The order of an epoch is cut into windows of :data:`WINDOW` batches; a row stays in its window. In a
window, rows are dealt out: the longest first, each into the batch with the fewest tokens. So
batches have equal numbers of tokens and rows of every length, and a step has the same weight as
with rows drawn at random. Far longer rows are dealt out separately, since outside the layers a
batch is padded to its longest row. If a batch would hold too much, as with rows of half a batch,
first-fit-decreasing packs the window. If the layers process padding too, rows of similar length
come together.

Sources: Graham, "Bounds on Multiprocessing Timing Anomalies", 1969 (longest first); Johnson,
"Near-Optimal Bin Packing Algorithms", 1973 (first-fit-decreasing).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapreplace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

#: Batches of a window.
WINDOW = 256
#: Aimed share of a batch that is filled. Rows need a little room to find a place.
FULL = 0.99
#: Outside the layers a batch is padded, to at most this multiple of the budget.
SPREAD = 8
#: Lengths are raised by up to this share, at random, so that epochs differ.
CHANCE = 0.1


def pack(sizes: Ints, budget: int, rng: np.random.Generator, *, padded: bool = False) -> list[Ints]:
    """Return batches that hold each row once.

    Args:
        sizes: Tokens of the rows in the order of the epoch, shape ``(N, parts)``. Source and target
            are separate parts, since they are padded separately.
        budget: Largest number of tokens of a batch, at least that of the longest row.
        rng: Generator that deals out rows and orders the batches of a window.
        padded: Whether padding counts: a batch has its number of rows times the longest row.

    Returns:
        For each batch, the positions of its rows in the order.

    Raises:
        ValueError: A row is longer than the budget.

    Example:
        >>> sizes = np.array([[3], [1], [2], [2]])
        >>> batches = pack(sizes, budget=4, rng=np.random.default_rng(0))
        >>> sorted(int(sizes[batch].sum()) for batch in batches)
        [4, 4]
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
    """Yield start and end of each window, and the number of batches that its rows should fill.

    Args:
        tokens: Tokens of the rows in their order, shape ``(N,)``.
        budget: Largest number of tokens of a batch.

    Example:
        >>> list(windows(np.array([3, 1, 2, 2]), budget=4))
        [(0, 4, 3)]
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
    """Return batches of consecutive rows, each as full as possible.

    Args:
        sizes: Tokens of the rows, shape ``(N, parts)``; see :func:`pack`.
        budget: Largest number of tokens of a batch.
        padded: Whether padding counts; see :func:`pack`.

    Example:
        >>> [batch.tolist() for batch in in_order(np.array([[3], [1], [2], [2]]), budget=4)]
        [[0, 1], [2, 3]]
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


def _descending(lengths: NDArray[np.number], cut: Iterable[tuple[int, int, int]]) -> list[Ints]:
    """Return the rows of each window, longest first."""
    return [start + np.argsort(-lengths[start:end], kind="stable") for start, end, _ in cut]


def _dealt(tokens: Ints, number: int, budget: int) -> Ints | None:
    """Deal out the strata of a window to one batch less, as many, or a hundredth more."""
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
    """Return the largest size of a batch after padding."""
    order = np.argsort(batches, kind="stable")
    starts = np.flatnonzero(np.diff(batches[order], prepend=-1))
    longest = np.maximum.reduceat(tokens[order], starts)
    return int((longest * np.diff(starts, append=len(order))).max(initial=0))


def strata(tokens: Ints, number: int) -> list[tuple[int, int]]:
    """Return the ends of strata: rows of one stratum are dealt out together.

    A batch of rows of one stratum, padded to the longest, stays below :data:`SPREAD` budgets.

    Args:
        tokens: Tokens of the rows, about longest first, shape ``(N,)``.
        number: Batches for all rows.

    Returns:
        For each end the numbers of rows and batches before it, from ``(0, 0)`` to ``(N, number)``.

    Example:
        >>> strata(np.array([2, 2, 1, 1]), number=3)
        [(0, 0), (4, 3)]
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
    """Return the batch of each row; a row goes to the batch with the fewest tokens.

    Args:
        tokens: Tokens of the rows. Batches are most alike if the longest rows come first.
        number: Number of batches.
        budget: Largest number of tokens of a batch.

    Returns:
        Numbers of batches, shape ``(N,)``; None if a batch would exceed the budget.

    Example:
        >>> deal([3, 2, 2, 1], number=2, budget=4).tolist()
        [0, 1, 1, 0]
    """
    bits = number.bit_length()
    emptiest = list(
        range(number)
    )  # a heap of integers: tokens of a batch in the high bits, its number in the low
    most, batches = (budget + 1) << bits, []
    for size in tokens:
        batch = emptiest[0] + (size << bits)
        if batch >= most:
            return None
        heapreplace(emptiest, batch)
        batches.append(batch)
    return np.array(batches, dtype=np.int64) & ((1 << bits) - 1)


def first_fit_decreasing(windows: Sequence[Ints], budget: int) -> list[Ints]:
    """Return the batch of each row: the first one with room for it.

    All windows are packed side by side, so the number of steps is that of the longest window.

    Args:
        windows: Tokens of the rows of each window, longest first, at least 1.
        budget: Largest number of tokens of a batch. Padded to its first row, a batch has at most
            ``SPREAD * budget`` tokens.

    Returns:
        Numbers of batches, an array for each window.

    Example:
        >>> [batch.tolist() for batch in first_fit_decreasing([np.array([3, 2, 2, 1])], budget=4)]
        [[0, 1, 1, 0]]
    """
    side = np.arange(len(windows))
    sizes = np.zeros((max(map(len, windows), default=0), len(windows)), dtype=np.int64)
    for window, tokens in enumerate(windows):
        sizes[: len(tokens), window] = tokens
    room = np.full((len(windows), 64), budget)
    rows = np.full(room.shape, len(sizes))  # rows that may still be added
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
    """Return ``number`` batches; the batches with the most rows are halved until there are enough.

    Args:
        batches: At most ``number`` batches.
        number: Wanted number of batches. The result has fewer if no batch has two rows.

    Example:
        >>> [batch.tolist() for batch in as_many([np.array([0, 1, 2]), np.array([3])], number=3)]
        [[0, 2], [1], [3]]
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
    """Return the rows of each batch, in order."""
    order = np.argsort(batches, kind="stable")
    return np.split(rows[order], np.flatnonzero(np.diff(batches[order])) + 1)
