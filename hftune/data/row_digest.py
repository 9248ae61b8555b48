# SPDX-License-Identifier: Apache-2.0
"""Keys of the cache for content that is computed from rows."""

import hashlib
import json
from collections.abc import Iterable

import pyarrow as pa
from datasets import Dataset

from hftune.data.arrow import column_batches


def rows_key(rows: Dataset, columns: Iterable[str], *decides: object) -> str:
    """Return the digest of some columns of rows, and of all else that decides a content.

    Args:
        rows: Their names and values count, not their chunks.
        columns: Columns that count, in this order.
        decides: What else does, such as versions and weights.

    Example:
        >>> rows = Dataset.from_dict({"text": ["a", "b", "b"]})
        >>> rows_key(rows.select([0, 2]), ["text"], 1) == rows_key(rows.select([0, 1]), ["text"], 1)
        True
        >>> rows_key(rows, ["text"], 1) == rows_key(rows, ["text"], 2)
        False
    """
    said = json.dumps(decides, sort_keys=True, default=str)
    digest = hashlib.sha256(said.encode())
    for name in columns:
        digest.update(name.encode())
        for batch in column_batches(rows, name):
            whole = pa.concat_arrays([batch])  # a slice would carry its neighbours
            digest.update(pa.record_batch([whole], names=[name]).serialize())
    return digest.hexdigest()
