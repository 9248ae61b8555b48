# SPDX-License-Identifier: Apache-2.0
"""Columns of picked rows against plain Python lists."""

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from hftune.data import arrow
from hftune.data.arrow import column_array, column_batches, lengths, picked


@pytest.mark.parametrize("seed", range(10))
def test_picked_rows_are_those_of_a_list(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(seed)
    monkeypatch.setattr(arrow, "BATCH", int(generator.integers(1, 9)))
    cells = [None if n % 7 == 3 else [str(n)] * (n % 4) for n in range(60)]
    cuts = np.sort(generator.integers(0, 61, 4)).tolist()
    pieces = [cells[a:b] for a, b in zip([0, *cuts], [*cuts, 60], strict=True)]
    column = pa.chunked_array(pieces, pa.list_(pa.string()))
    rows = Dataset(pa.table({"words": column}))
    order = generator.integers(0, 60, 40)
    once = picked(rows, order)
    assert column_array(once, "words").to_pylist() == [cells[i] for i in order]
    assert list(once["words"]) == [cells[i] for i in order]
    twice = picked(once, np.arange(39, -1, -2))
    assert column_array(twice, "words").to_pylist() == [cells[i] for i in order[::-2]]
    sizes = [len(batch) for batch in column_batches(rows, "words")]
    assert set(sizes[:-1]) <= {arrow.BATCH}
    assert sum(sizes) == 60


def test_lengths() -> None:
    assert lengths(pa.chunked_array([[[1, 2], []], [[3]]])).tolist() == [2, 0, 1]
