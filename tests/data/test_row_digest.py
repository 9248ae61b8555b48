# SPDX-License-Identifier: Apache-2.0
"""Keys follow the content of rows, not the way in which they lie in memory."""

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from hftune.data.row_digest import rows_key

ROWS = Dataset.from_dict({"text": ["a", "b", "c", "d"], "ids": [[1], [2, 3], [], [4]]})
NAMES = ["text", "ids"]


def test_the_same_content_has_the_same_key() -> None:
    key = rows_key(ROWS, NAMES, {"weights": 1})
    shuffled = ROWS.select([3, 1, 0, 2])
    assert rows_key(shuffled.select(np.argsort([3, 1, 0, 2])), NAMES, {"weights": 1}) == key
    halves = concatenate_datasets([ROWS.select(range(2)), ROWS.select([2, 3])])
    assert rows_key(halves, NAMES, {"weights": 1}) == key
    assert rows_key(Dataset(pa.table(ROWS.to_dict())), NAMES, {"weights": 1}) == key


def test_all_that_decides_changes_the_key() -> None:
    longer = Dataset.from_dict({**ROWS.to_dict(), "ids": [[1, 2], [3], [], [4]]})
    found = [
        rows_key(ROWS, NAMES, 1),
        rows_key(ROWS, NAMES, 2),
        rows_key(ROWS, ["text"], 1),
        rows_key(ROWS, ["ids", "text"], 1),
        rows_key(ROWS.select([0, 1, 3, 2]), NAMES, 1),
        rows_key(longer, NAMES, 1),
        rows_key(ROWS.rename_column("text", "title"), ["title", "ids"], 1),
    ]
    assert len(set(found)) == len(found)
