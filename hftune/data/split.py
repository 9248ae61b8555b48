# SPDX-License-Identifier: Apache-2.0
"""A validation part split off: stratified, seeded, and with no text in both parts."""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np


def split_indices(
    keys: Sequence[Hashable],
    strata: Sequence[Hashable] | None,
    size: float | int,
    seed: int,
) -> tuple[list[int], list[int]]:
    """Choose validation rows so that rows of one key stay together.

    Each stratum gives its share, rounded so that the shares add up (largest remainder), as nearly
    as its groups allow, but never its last group. Both lists keep the order of the rows.

    Args:
        keys: What must not be torn apart, such as the row's text.
        strata: What both parts shall hold alike, such as the label; one stratum when None.
        size: Share of the rows if below 1, else their number.
        seed: Same seed, same parts.

    Returns:
        Indices of the training rows and of the validation rows.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    by_stratum: dict[Hashable, list[list[int]]] = defaultdict(list)
    for members in groups.values():
        by_stratum[strata[members[0]] if strata is not None else None].append(members)

    share = size if size < 1 else min(size / len(keys), 1.0)
    ordered = sorted(by_stratum, key=str)
    wanted = _largest_remainder([share * sum(map(len, by_stratum[stratum])) for stratum in ordered])
    generator = np.random.default_rng(seed)
    validation: set[int] = set()
    for stratum, number in zip(ordered, wanted, strict=True):
        candidates = by_stratum[stratum]
        taken = 0
        for position in generator.permutation(len(candidates))[: len(candidates) - 1]:
            if abs(taken + len(candidates[position]) - number) < abs(taken - number):
                validation.update(candidates[position])
                taken += len(candidates[position])
    return [i for i in range(len(keys)) if i not in validation], sorted(validation)


def joined_keys(*columns: Sequence[Hashable]) -> list[int]:
    """Return a number a row, equal for rows that share a value in a column, or are so linked.

    Args:
        columns: Values of each row; values of different columns are never the same.
    """
    parent: dict[Hashable, Hashable] = {}

    def root(node: Hashable) -> Hashable:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    rows = [list(enumerate(values)) for values in zip(*columns, strict=True)]
    for first, *others in rows:
        for other in others:
            parent[root(other)] = root(first)
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(root(first), len(numbers)) for first, *_ in rows]


def _largest_remainder(shares: list[float]) -> list[int]:
    """Round to whole numbers whose sum is the rounded sum."""
    floors = [int(share) for share in shares]
    left = round(sum(shares)) - sum(floors)
    by_remainder = sorted(range(len(shares)), key=lambda i: floors[i] - shares[i])
    for index in by_remainder[:left]:
        floors[index] += 1
    return floors
