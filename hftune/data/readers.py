# SPDX-License-Identifier: Apache-2.0
"""One reader a kind of file, each strict, each yielding tables of some thousand rows.

A byte that is not UTF-8, a broken line, a repeated column is an error that names the place. Cells
of a csv or tsv stay text, so that ``NA``, ``007`` and ``2024-01-01`` survive.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from hftune.core.errors import HftuneError, first_line
from hftune.data.arrow import BATCH, MISMATCH, clashes, unified
from hftune.data.conll import CONLL, read_conll
from hftune.data.source import Source, check_utf8, kind_of

#: Part of the key of cached rows: raise it when a reader's result changes.
READERS_VERSION = 1
CSV_BLOCK = 2**24
#: Ways to cut a txt file into rows.
SAMPLE_BY = ("line", "paragraph", "document")

Numbered = tuple[int, dict[str, Any]]


def is_known(file: Path) -> bool:
    """Tell whether a reader takes such a file."""
    packed = file.suffix == ".gz"
    return kind_of(file) in READERS and not (packed and kind_of(file) in (".parquet", *CONLL))


def read(source: Source) -> Iterator[pa.Table]:
    """Yield the rows of a file, some thousand a table.

    Raises:
        HftuneError: It is empty or broken; the message names the place.
    """
    file, rows = source.file, 0
    if file.stat().st_size == 0:
        raise HftuneError(f"{file}: the file is empty")
    try:
        if source.kind != ".parquet":
            check_utf8(source)
        for table in READERS[source.kind](source):
            rows += table.num_rows
            yield table
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise HftuneError(
            f"{file}: damaged gzip: {error}", hint="copy or download the file again"
        ) from None
    if rows == 0:
        raise HftuneError(f"{file}: no rows")


def _read_csv(source: Source) -> Iterator[pa.Table]:
    delimiter = "\t" if source.kind == ".tsv" else ","
    with source.text() as lines:
        lines.reconfigure(newline="")
        header = next(csv.reader(lines, delimiter=delimiter), [])
    _check_columns(source.file, header)
    try:
        with (
            source.open() as stream,
            pa.csv.open_csv(
                stream,
                # Several threads would not know the number of a broken row.
                read_options=pa.csv.ReadOptions(block_size=CSV_BLOCK, use_threads=False),
                parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
                ),
            ) as reader,
        ):
            for batch in reader:
                yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        raise HftuneError(f"{source.file}: {first_line(error)}") from error


def _read_jsonl(source: Source) -> Iterator[pa.Table]:
    schema = pa.schema([])
    batch: list[Numbered] = []
    for numbered in _json_lines(source):
        batch.append(numbered)
        if len(batch) == BATCH:
            table = _table(source, batch)
            schema = _grown(source, schema, table.schema)
            yield table
            batch = []
    if batch:
        table = _table(source, batch)
        _grown(source, schema, table.schema)
        yield table


def _json_lines(source: Source) -> Iterator[Numbered]:
    """Yield (line, row), strictly; blank lines are none."""
    with source.text() as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, json_row(f"{source.file}:{number}", line)


def json_row(place: str, line: str) -> dict[str, Any]:
    """Return the object that a line of jsonl is.

    Raises:
        HftuneError: It is broken, or none; the message begins with the place.
    """
    line = line.strip()
    try:
        row = _decode(line)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at character {error.pos + 1}"
        if error.pos >= len(line):
            where = f"the line ends too soon, at character {len(line)}"
        raise HftuneError(f"{place}: broken json: {where}") from None
    except (ValueError, RecursionError) as error:
        raise HftuneError(f"{place}: broken json: {error}") from None
    if not isinstance(row, dict):
        raise HftuneError(f"{place}: a row is an object, not {row!r:.40}")
    return row


def _read_json(source: Source) -> Iterator[pa.Table]:
    """Read an array of objects, or an object of columns."""
    file = source.file
    try:
        with source.text() as text:
            content = json.load(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise HftuneError(
            f"{file}: broken json: {error}",
            hint="one object a line is jsonl: name the file so",
        ) from None
    if isinstance(content, dict):
        lengths = {key: len(v) if isinstance(v, list) else None for key, v in content.items()}
        if len(set(lengths.values())) != 1 or None in lengths.values():
            raise HftuneError(
                f"{file}: an array of objects, or an object of columns with lists of one length; "
                f"this is an object with {', '.join(map(repr, lengths)) or 'no key'}"
            )
        content = [
            dict(zip(content, cells, strict=True)) for cells in zip(*content.values(), strict=True)
        ]
    if not isinstance(content, list):
        raise HftuneError(f"{file}: an array of objects is needed, not {content!r:.40}")
    for number, row in enumerate(content, start=1):
        if not isinstance(row, dict):
            raise HftuneError(f"{file}: item {number} is no object but {row!r:.40}")
    if content:
        yield _table(source, list(enumerate(content, start=1)))


def _read_txt(source: Source) -> Iterator[pa.Table]:
    """Column ``text``; rows without a visible character are none."""
    batch: list[str] = []
    for text in _texts(source):
        if text.strip():
            batch.append(text)
        if len(batch) == BATCH:
            yield pa.table({"text": batch})
            batch = []
    if batch:
        yield pa.table({"text": batch})


def _texts(source: Source) -> Iterator[str]:
    with source.text() as lines:
        if source.sample_by == "line":
            yield from (line.rstrip("\n") for line in lines)
        elif source.sample_by == "document":
            yield lines.read()
        else:
            paragraph: list[str] = []
            for line in lines:
                if line.strip():
                    paragraph.append(line)
                else:
                    yield "".join(paragraph).rstrip("\n")
                    paragraph = []
            yield "".join(paragraph).rstrip("\n")


def _read_parquet(source: Source) -> Iterator[pa.Table]:
    file = source.file
    try:
        with pa.parquet.ParquetFile(file) as content:
            _check_columns(file, content.schema_arrow.names)
            for batch in content.iter_batches(batch_size=BATCH):
                yield pa.Table.from_batches([batch], schema=content.schema_arrow)
    except (pa.ArrowInvalid, OSError) as error:
        raise HftuneError(f"{file}: broken parquet: {first_line(error)}") from error


def _read_conll(source: Source) -> Iterator[pa.Table]:
    yield read_conll(source.file)


READERS: dict[str, Callable[[Source], Iterator[pa.Table]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
    **dict.fromkeys(CONLL, _read_conll),
}


def _table(source: Source, rows: list[Numbered]) -> pa.Table:
    names = dict.fromkeys(key for _, row in rows for key in row)
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for _, row in rows])
        except (OverflowError, UnicodeEncodeError) as error:
            raise HftuneError(f"{source.file}: column {name!r}: {error}") from None
        except MISMATCH:
            raise _mixed(source, name, rows) from None
    return pa.table(columns)


def _grown(source: Source, schema: pa.Schema, more: pa.Schema) -> pa.Schema:
    """Return the schema of all rows so far; an error names the first line of each kind."""
    try:
        return unified(schema, more)
    except MISMATCH:
        raise _mixed(source, clashes(schema, more)[0], _json_lines(source)) from None


def _mixed(source: Source, name: str, rows: Iterable[Numbered]) -> HftuneError:
    kinds: dict[str, int] = {}
    inside: dict[str, int] = {}
    for number, row in rows:
        cell = row.get(name)
        kinds.setdefault(type(cell).__name__, number)
        for item in cell if isinstance(cell, list) else ():
            inside.setdefault(f"{type(item).__name__} in a list", number)
    kinds = inside if kinds.keys() <= {"list", "NoneType"} else kinds
    place = "item" if source.kind == ".json" else "line"
    seen = ", ".join(f"{kind} in {place} {number}" for kind, number in kinds.items())
    return HftuneError(f"{source.file}: column {name!r} mixes types: {seen}")


def _check_columns(file: Path, names: Iterable[str]) -> None:
    names = list(names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise HftuneError(f"{file}: duplicate columns {', '.join(twice)} among {', '.join(names)}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key stands twice")
    return row


_decode = json.JSONDecoder(object_pairs_hook=_unique_keys).decode
