# SPDX-License-Identifier: Apache-2.0
"""Properties of the validation split, over many random inputs."""

from collections import Counter

import numpy as np
import pytest

from hftune.data import split
from hftune.data.split import Keys


def split_indices(
    keys: Keys, strata: Keys | None, size: float, seed: int
) -> tuple[list[int], list[int]]:
    train, validation = split.split_indices(keys, strata, size, seed)
    return train.tolist(), validation.tolist()


def joined_keys(*columns: Keys) -> list[int]:
    return split.joined_keys(*columns).tolist()


def walked(columns: list[list[int]]) -> list[int]:
    """Number the rows by walking from row to row over equal values, one at a time."""
    found = [-1] * len(columns[0])
    for start in range(len(found)):
        if found[start] < 0:
            number, waiting = max(found) + 1, [start]
            while waiting:
                row = waiting.pop()
                found[row] = number
                waiting += [
                    other
                    for other in range(len(found))
                    if found[other] < 0 and any(c[row] == c[other] for c in columns)
                ]
    return found


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("number", [1, 2, 3])
def test_joined_keys_are_what_a_walk_finds(seed: int, number: int) -> None:
    generator = np.random.default_rng(seed)
    columns = [generator.integers(0, 60, 60) for _ in range(number)]
    expected = walked([column.tolist() for column in columns])
    assert joined_keys(*columns) == expected
    assert joined_keys(*(column.tolist() for column in columns)) == expected


@pytest.mark.parametrize("seed", range(5))
def test_arrays_split_like_lists(seed: int) -> None:
    generator = np.random.default_rng(seed)
    keys, strata = generator.integers(0, 50, 90), generator.choice(["a", "b", "10"], 90)
    as_lists = split_indices(keys.tolist(), strata.tolist(), 0.3, seed)
    assert split_indices(keys, strata, 0.3, seed) == as_lists


@pytest.mark.parametrize("seed", range(20))
def test_disjoint_complete_ordered_and_no_key_torn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    number = int(generator.integers(2, 200))
    keys = generator.integers(0, max(2, number // 2), number).tolist()
    strata = generator.choice(["a", "b", "c"], number, p=[0.7, 0.2, 0.1]).tolist()
    size = float(generator.uniform(0, 0.9))
    train, validation = split_indices(keys, strata, size, seed)
    assert sorted(train + validation) == list(range(number))
    assert train == sorted(train)
    assert validation == sorted(validation)
    assert not {keys[i] for i in train} & {keys[i] for i in validation}
    strata_of_keys = {key: strata[keys.index(key)] for key in keys}
    for stratum in "abc":  # as near as the groups allow: half the largest one, and the rounding
        members = [key for key in keys if strata_of_keys[key] == stratum]
        held = sum(strata_of_keys[keys[i]] == stratum for i in validation)
        if len(set(members)) > 1:
            largest = max(map(members.count, members))
            spare = max(0, held - size * len(members))
            assert spare <= largest / 2 + 1


@pytest.mark.parametrize("size", [0.1, 0.25, 1 / 3, 0.29, 0.5])
@pytest.mark.parametrize("counts", [(30, 20, 10), (97, 11, 5), (50, 50, 3)])
def test_stratified_within_rounding(counts: tuple[int, ...], size: float) -> None:
    strata = [name for name, count in zip("abc", counts, strict=True) for _ in range(count)]
    _, validation = split_indices(range(len(strata)), strata, size, seed=1)
    held = Counter(strata[i] for i in validation)
    assert len(validation) == round(size * len(strata))
    for name, count in zip("abc", counts, strict=True):
        assert abs(held[name] - size * count) < 1


def test_groups_fill_the_share_up_to_one_group() -> None:
    keys = [i // 3 for i in range(90)]
    _, validation = split_indices(keys, None, 0.25, seed=0)
    assert round(0.25 * 90) - 3 < len(validation) <= round(0.25 * 90)


def test_seed_alone_decides() -> None:
    strata = ["a", "b"] * 50
    parts = [split_indices(range(100), strata, 0.2, seed) for seed in (3, 3, 4)]
    assert parts[0] == parts[1]
    assert parts[0] != parts[2]
    assert len({tuple(split_indices(range(100), None, 0.1, seed)[1]) for seed in range(10)}) > 5


def test_every_row_can_be_held_out() -> None:
    held = [set(split_indices(range(20), None, 0.25, seed)[1]) for seed in range(100)]
    assert set.union(*held) == set(range(20))


@pytest.mark.parametrize("size", [1, 7, 19])
def test_size_as_a_number_of_rows(size: int) -> None:
    assert len(split_indices(range(20), None, size, seed=0)[1]) == size
    assert len(split_indices(range(20), ["a", "b"] * 10, size, seed=0)[1]) in {size, size - 1}


def test_more_rows_than_there_are() -> None:
    train, validation = split_indices(range(5), None, 1000, seed=0)
    assert (len(train), len(validation)) == (1, 4)


@pytest.mark.parametrize("size", [0, 0.0])
def test_nothing_held_out(size: float) -> None:
    assert split_indices(range(5), None, size, seed=0) == (list(range(5)), [])


@pytest.mark.parametrize("size", [0.5, 0.99, 100])
@pytest.mark.parametrize("seed", range(5))
def test_a_stratum_keeps_its_last_key(size: float, seed: int) -> None:
    keys = ["x", "x", "x", "y", "z", "w", "v", "v"]
    strata = ["one", "one", "one", "two", "two", "two", "three", "three"]
    train, _ = split_indices(keys, strata, size, seed)
    assert {strata[i] for i in train} == {"one", "two", "three"}
    assert {0, 1, 2, 6, 7} <= set(train), "strata of one key are never held out"


def test_one_key_in_two_strata_stays_together() -> None:
    keys = ["same"] * 4 + list(range(16))
    strata = ["a", "b"] * 10
    for seed in range(10):
        _, validation = split_indices(keys, strata, 0.5, seed)
        assert len({0, 1, 2, 3} & set(validation)) in {0, 4}


def test_joined_keys_link_rows_by_any_column() -> None:
    texts = ["a", "b", "a", "c", "d", "e"]
    groups = [1, 1, 2, 3, 3, 4]
    keys = joined_keys(texts, groups)
    assert keys[0] == keys[1] == keys[2]  # a in group 1, b beside it, and a again in group 2
    assert keys[3] == keys[4]
    assert len({keys[0], keys[3], keys[5]}) == 3
    assert joined_keys(["x", "y", "x"]) == [0, 1, 0]
    assert len(set(joined_keys(["same", "other"], ["other", "same"]))) == 2  # columns differ
