# SPDX-License-Identifier: Apache-2.0
"""Arrow tables that arrive piece by piece: one schema for all, and one file that is mapped."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

BATCH = 10_000
MISMATCH = (pa.ArrowInvalid, pa.ArrowTypeError)


def unified(first: pa.Schema, second: pa.Schema) -> pa.Schema:
    """Return the schema that holds both; integers beside floats become floats.

    Raises:
        pyarrow.ArrowTypeError: A column has types that do not go together; see :func:`clashes`.
    """
    return pa.unify_schemas([first, second], promote_options="permissive")


def clashes(first: pa.Schema, second: pa.Schema) -> list[str]:
    """Return the columns whose types do not go together."""
    wrong = []
    for name in first.names:
        if name in second.names:
            try:
                unified(pa.schema([first.field(name)]), pa.schema([second.field(name)]))
            except MISMATCH:
                wrong.append(name)
    return wrong


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    """Return all rows as one table with the schema that holds them all."""
    return pa.concat_tables(tables, promote_options="permissive")


def write_arrow(tables: Iterable[pa.Table], path: Path) -> int:
    """Write tables to one Arrow file, whole or not at all, and return the number of rows.

    No more than one table is held in memory. Where a later table widens the schema, what came
    before is rewritten with the final one.
    """
    rows = 0
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        parts: list[Path] = []
        schema: pa.Schema | None = None
        with contextlib.ExitStack() as open_files:
            for table in tables:
                grown = table.schema if schema is None else unified(schema, table.schema)
                if schema is None or not grown.equals(schema):
                    open_files.close()
                    schema = grown
                    parts.append(Path(folder) / str(len(parts)))
                    writer = open_files.enter_context(pa.ipc.new_stream(str(parts[-1]), schema))
                writer.write_table(_conformed(table, schema), max_chunksize=BATCH)
                rows += table.num_rows
        if not parts:
            return 0
        if len(parts) > 1:
            whole = Path(folder) / "whole"
            with pa.ipc.new_stream(str(whole), schema) as writer:
                for part in parts:
                    for batch in mapped(part).to_batches():
                        writer.write_table(_conformed(pa.Table.from_batches([batch]), schema))
            parts = [whole]
        with parts[0].open("rb+") as file:
            os.fsync(file.fileno())
        parts[0].replace(path)
    return rows


def mapped(path: Path) -> pa.Table:
    """Return the table of an Arrow file; its rows stay on the disk until they are read."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def as_dataset(columns: Mapping[str, pa.ChunkedArray]) -> Dataset:
    """Return columns as a data set, without reading them for its fingerprint."""
    return Dataset(pa.table(dict(columns)), fingerprint=secrets.token_hex(8))


def column_array(rows: Dataset, name: str) -> pa.ChunkedArray:
    """Return one column; without a copy where the rows have not been picked from others."""
    return pa.chunked_array(column_batches(rows, name), rows.data.schema.field(name).type)


def column_batches(rows: Dataset, name: str) -> Iterator[pa.Array]:
    """Yield one column as arrays of at most ``BATCH`` values."""
    column = rows.data.column(name)
    if rows._indices is None:
        for chunk in column.chunks:
            for start in range(0, len(chunk), BATCH):
                yield chunk.slice(start, BATCH)
    else:  # datasets itself would slice row by row
        picked = rows._indices.column(0)
        for start in range(0, len(picked), BATCH):
            places = picked.slice(start, BATCH).to_numpy()
            low, high = int(places.min()), int(places.max())
            near = column.slice(low, high - low + 1)  # take would look at all other chunks, too
            yield pa.concat_arrays(near.take(pa.array(places - low)).chunks)


def codes(values: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[object]]:
    """Return a number a value, and the distinct values in the order in which they first stand.

    A missing value has the number after those.
    """
    if pa.types.is_nested(values.type):
        values = pa.chunked_array([[str(value) for value in c.to_pylist()] for c in values.chunks])
    encoded = values.dictionary_encode().combine_chunks()
    numbers = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    return numbers.astype(np.int64), encoded.dictionary.to_pylist()


def hashes(texts: Iterable[str]) -> NDArray[np.uint64]:
    """Return 64 bits a text, the same in every process; two texts in 10**19 share theirs."""
    digests = (blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def column_hashes(rows: Dataset, name: str) -> NDArray[np.uint64]:
    """Return :func:`hashes` of a column of texts."""
    return np.concatenate([hashes(batch.to_pylist()) for batch in column_batches(rows, name)])


def pair_hashes(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 bits a pair of hashes; the order of the two counts."""
    return first * np.uint64(0x9E3779B97F4A7C15) + second


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    if table.schema.equals(schema):
        return table
    return joined([schema.empty_table(), table])
