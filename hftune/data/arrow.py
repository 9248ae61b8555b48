# SPDX-License-Identifier: Apache-2.0
"""Collect Arrow tables that arrive one after the other: one schema, one memory-mapped file."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from datasets.table import InMemoryTable
from numpy.typing import NDArray

BATCH = 10_000
MISMATCH = (pa.ArrowInvalid, pa.ArrowTypeError)


def unified(first: pa.Schema, second: pa.Schema) -> pa.Schema:
    """Return the schema for rows of both; integers and floats together become floats.

    Raises:
        pyarrow.ArrowTypeError: A column has types that do not go together; see :func:`clashes`.

    Example:
        >>> unified(pa.schema({"n": pa.int64()}), pa.schema({"n": pa.float64()})).field("n").type
        DataType(double)
    """
    return pa.unify_schemas([first, second], promote_options="permissive")


def clashes(first: pa.Schema, second: pa.Schema) -> list[str]:
    """Return the columns whose types do not go together.

    Example:
        >>> clashes(pa.schema({"n": pa.int64()}), pa.schema({"n": pa.string()}))
        ['n']
    """
    wrong = []
    for name in first.names:
        if name in second.names:
            try:
                unified(pa.schema([first.field(name)]), pa.schema([second.field(name)]))
            except MISMATCH:
                wrong.append(name)
    return wrong


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    """Return the rows of all tables as one table.

    Example:
        >>> joined([pa.table({"n": [1]}), pa.table({"n": [0.5]})]).column("n").to_pylist()
        [1.0, 0.5]
    """
    return pa.concat_tables(tables, promote_options="permissive")


def write_arrow(tables: Iterable[pa.Table], path: Path) -> int:
    """Write tables to one Arrow file, whole or not at all, and return the number of rows.

    Only one table is held in memory at a time. If a later table widens the schema, the earlier
    rows are written again with the final schema.
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
    """Return the table of an Arrow file; rows stay on the disk until they are read."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def as_dataset(columns: Mapping[str, pa.ChunkedArray]) -> Dataset:
    """Return columns as a dataset, without reading them for its fingerprint.

    Example:
        >>> as_dataset({"n": pa.chunked_array([[1, 2]])})[1]
        {'n': 2}
    """
    return Dataset(pa.table(dict(columns)), fingerprint=secrets.token_hex(8))


def column_array(rows: Dataset, name: str) -> pa.ChunkedArray:
    """Return one column, without a copy if the dataset has no indices mapping."""
    if rows._indices is None:
        return rows.data.column(name)
    return pa.chunked_array(column_batches(rows, name), rows.data.schema.field(name).type)


def column_batches(rows: Dataset, name: str) -> Iterator[pa.Array]:
    """Yield one column as arrays of ``BATCH`` values; the last array has the rest."""
    column = rows.data.column(name)
    if rows._indices is None:
        for start in range(0, len(column), BATCH):
            chunks = column.slice(start, BATCH).chunks
            yield chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    else:  # datasets itself would slice row by row
        places = rows._indices.column(0)
        for start in range(0, len(places), BATCH):
            yield _taken(column, places.slice(start, BATCH).to_numpy().astype(np.int64))


def picked(rows: Dataset, order: NDArray[np.int64]) -> Dataset:
    """Return some of the rows; ``Dataset.select`` would look at each index in Python.

    Example:
        >>> picked(Dataset.from_dict({"n": [10, 20, 30]}), np.array([2, 0]))["n"][:]
        [30, 10]
    """
    if rows._indices is not None:
        order = rows._indices.column(0).take(pa.array(order)).to_numpy()
    places = InMemoryTable(pa.table({"indices": pa.array(order.astype(np.uint64))}))
    return Dataset(
        rows.data, rows.info.copy(), rows.split, places, fingerprint=secrets.token_hex(8)
    )


def lengths(lists: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the number of items in each list of a column.

    Example:
        >>> lengths(pa.chunked_array([[[7, 8], [], [9]]])).tolist()
        [2, 0, 1]
    """
    return np.asarray(pc.list_value_length(lists), dtype=np.int64)


def items(lists: pa.ChunkedArray) -> NDArray[np.generic]:
    """Return the items of all lists of a column, one list after the other.

    Example:
        >>> items(pa.chunked_array([[[7, 8], [], [9]]])).tolist()
        [7, 8, 9]
    """
    return np.concatenate([np.asarray(chunk.flatten()) for chunk in lists.chunks])


def codes(values: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[object]]:
    """Return a code for each value, and the distinct values in order of first appearance.

    The code of a missing value is the number of distinct values.

    Example:
        >>> numbers, distinct = codes(pa.chunked_array([["b", "a", None, "b"]]))
        >>> numbers.tolist(), distinct
        ([0, 1, 2, 0], ['b', 'a'])
    """
    if pa.types.is_nested(values.type):
        values = pa.chunked_array([[str(value) for value in c.to_pylist()] for c in values.chunks])
    encoded = values.dictionary_encode().combine_chunks()
    numbers = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    return numbers.astype(np.int64), encoded.dictionary.to_pylist()


def _taken(column: pa.ChunkedArray, places: NDArray[np.int64]) -> pa.Array:
    """Return values by position, chunk by chunk; ``ChunkedArray.take`` would copy all first."""
    order = np.argsort(places, kind="stable")
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    cuts = np.searchsorted(places[order], ends)
    starts = np.concatenate([[0], cuts[:-1]])
    pieces = [
        chunk.take(pa.array(places[order[start:cut]] - (end - len(chunk))))
        for chunk, end, start, cut in zip(column.chunks, ends, starts, cuts, strict=True)
        if cut > start
    ]
    sorted_values = pa.concat_arrays(pieces)
    if (np.diff(order) == 1).all():
        return sorted_values
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return sorted_values.take(pa.array(back))


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    if table.schema.equals(schema):
        return table
    return joined([schema.empty_table(), table])
