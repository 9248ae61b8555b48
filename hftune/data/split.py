# SPDX-License-Identifier: Apache-2.0
"""A validation part split off: stratified, seeded, and with no text in both parts."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

#: What rows are told apart by: hashable values, or numbers.
Keys = Sequence[Hashable] | NDArray[np.integer[Any]]


def split_indices(
    keys: Keys,
    strata: Keys | None,
    size: float | int,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose validation rows so that rows of one key stay together.

    Each stratum gives its share, rounded so that the shares add up (largest remainder), as nearly
    as its groups allow, but never its last group. Both parts keep the order of the rows.

    Args:
        keys: What must not be torn apart, such as the row's text.
        strata: What both parts shall hold alike, such as the label; one stratum when None.
        size: Share of the rows if below 1, else their number.
        seed: Same seed, same parts.

    Returns:
        Indices of the training rows and of the validation rows.
    """
    groups = _numbers(keys)
    sizes, first = np.bincount(groups), np.unique(groups, return_index=True)[1]
    stratum_of_row = _numbers(strata) if strata is not None else np.zeros(len(keys), np.int64)
    stratum_of_group = stratum_of_row[first]
    _, row_of = np.unique(stratum_of_row, return_index=True)
    names = [None if strata is None else strata[row] for row in row_of]

    share = size if size < 1 else min(size / len(keys), 1.0)
    ordered = sorted(dict.fromkeys(stratum_of_group.tolist()), key=lambda s: str(names[s]))
    held = np.bincount(stratum_of_group, weights=sizes)
    wanted = _largest_remainder([share * held[stratum] for stratum in ordered])
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(sizes), dtype=bool)
    for stratum, number in zip(ordered, wanted, strict=True):
        candidates = np.flatnonzero(stratum_of_group == stratum)
        drawn = candidates[generator.permutation(len(candidates))[: len(candidates) - 1]]
        chosen[_nearest(drawn, sizes[drawn], number)] = True
    validation = chosen[groups]
    return np.flatnonzero(~validation), np.flatnonzero(validation)


def _nearest(groups: NDArray[np.int64], sizes: NDArray[np.int64], number: int) -> list[int]:
    """Return groups, in their order, that each bring the number of rows nearer to the wanted."""
    taken, rows = [], 0
    for group, size in zip(groups.tolist(), sizes.tolist(), strict=True):
        if abs(rows + size - number) < abs(rows - number):
            taken.append(group)
            rows += size
    return taken


def joined_keys(*columns: Keys) -> NDArray[np.int64]:
    """Return a number a row, equal for rows that share a value in a column, or are so linked.

    Args:
        columns: Values of each row; values of different columns are never the same.
    """
    first, *others = map(_numbers, columns)
    if not others:
        return first
    # A graph whose nodes are the values of all columns; a row links its values to each other.
    starts = np.cumsum([0, *(values.max(initial=-1) + 1 for values in (first, *others))])
    ends = np.concatenate(
        [values + start for values, start in zip(others, starts[1:], strict=False)]
    )
    edges = (np.ones(len(ends), dtype=bool), (np.tile(first, len(others)), ends))
    graph = coo_array(edges, shape=(starts[-1], starts[-1]))
    components = connected_components(graph, directed=False)[1]
    return _numbers(components[first])


def _numbers(values: Keys) -> NDArray[np.int64]:
    """Return the number of each value; numbers follow the order of first appearance."""
    if not isinstance(values, np.ndarray):
        numbers: dict[Hashable, int] = {}
        return np.fromiter((numbers.setdefault(v, len(numbers)) for v in values), np.int64)
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    ranks = np.empty(len(first), np.int64)
    ranks[np.argsort(first)] = np.arange(len(first))
    return ranks[inverse]


def _largest_remainder(shares: list[float]) -> list[int]:
    """Round to whole numbers whose sum is the rounded sum."""
    floors = [int(share) for share in shares]
    left = round(sum(shares)) - sum(floors)
    by_remainder = sorted(range(len(shares)), key=lambda i: floors[i] - shares[i])
    for index in by_remainder[:left]:
        floors[index] += 1
    return floors
