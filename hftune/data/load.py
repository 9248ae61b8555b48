# SPDX-License-Identifier: Apache-2.0
"""Rows from where the user keeps them, as one ``datasets.Dataset`` a part.

Files are read strictly: a byte that is not UTF-8, a broken line, a repeated column is an error that
names the place. Cells of a csv stay text, so that ``NA``, ``007`` and ``2024-01-01`` survive.
"""

import codecs
import csv
import glob
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from datasets import Dataset, DatasetDict

from hftune.core.errors import HftuneError
from hftune.data.conll import read_conll

DEMO = "demo:docstrings"
OTHER_SUFFIXES = (".json", ".tsv", ".txt", ".xls", ".xlsx", ".zip", ".gz")


def load_parts(
    path: str | list[str],
    validation: str | list[str] | None = None,
    *,
    name: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> tuple[Dataset, Dataset | None]:
    """Return the training rows and, where the source has them, the validation rows.

    Args:
        path: File, glob, list of files, saved ``datasets`` folder, Hub id, or ``demo:docstrings``.
        validation: The same again, or the name of a split of ``path``.
        name: Configuration of a Hub data set.
        split: Part of a Hub data set or saved folder to train on.
        revision: Revision of a Hub data set.

    Raises:
        HftuneError: Something is missing, empty or broken; the message names file and place.
    """
    for key, value in {"name": name, "revision": revision}.items():
        if value is not None and source_files(path):
            raise HftuneError(f"data.{key}: {path} is a file; only Hub data sets have one")
    source = _open(path, name, revision)
    if isinstance(source, Dataset):
        if split is not None:
            raise HftuneError(f"data.split: {path} has no splits")
        held_out = None if validation is None else load_part(validation)
        return _not_empty(source, path), held_out
    train = _split(source, split or "train", "data.split", path)
    if isinstance(validation, str) and validation in source:
        return train, _split(source, validation, "data.validation", path)
    if validation is not None:
        return train, load_part(validation)
    if split is None and "validation" in source:
        return train, _split(source, "validation", "data.validation", path)
    return train, None


def load_part(path: str | list[str], split: str | None = None) -> Dataset:
    """Return the rows of one part; see :func:`load_parts`."""
    source = _open(path, None, None)
    if isinstance(source, DatasetDict):
        return _split(source, split or "test", "split", path)
    return _not_empty(source, path)


def source_files(path: str | list[str]) -> list[Path]:
    """Return the files that a path stands for; none for a Hub id or demo data.

    Raises:
        HftuneError: A file does not exist or a glob matches nothing.
    """
    if isinstance(path, list):
        files = [(item, source_files(item)) for item in path]
        strange = [item for item, found in files if not found]
        if strange:
            raise HftuneError(
                f"a list holds files alone; no such file: {', '.join(map(str, strange))}"
            )
        return [file for _, found in files for file in found]
    if path == DEMO:
        return []
    if glob.has_magic(path) and not Path(path).exists():
        matches = sorted(Path(match) for match in glob.glob(path, recursive=True))
        if not matches:
            raise HftuneError(f"{path}: the glob matches no file")
        return matches
    if Path(path).is_file():
        return [Path(path)]
    if Path(path).suffix in OTHER_SUFFIXES:
        raise HftuneError(f"{path}: unknown kind of file; known: {', '.join(READERS)}")
    if Path(path).suffix in READERS:
        raise HftuneError(f"{path}: no such file", hint=_nearby(Path(path)))
    return []


def _open(path: str | list[str], name: str | None, revision: str | None) -> Dataset | DatasetDict:
    files = source_files(path)
    if files:
        return _read_files(files)
    if path == DEMO:
        from hftune.data.docstrings import conversation, docstring_rows, tagged_signature

        return Dataset.from_list(
            [
                {**row, **tagged_signature(row["signature"]), "messages": conversation(row)}
                for row in docstring_rows()
            ]
        )
    if isinstance(path, list):
        raise HftuneError("an empty list of files")
    if path.startswith("demo:"):
        raise HftuneError(f"{path}: unknown demo data; known: {DEMO}")
    if Path(path).is_dir():
        return _saved_folder(Path(path))
    try:
        return datasets.load_dataset(path, name, revision=revision)
    except (OSError, ValueError) as error:
        raise HftuneError(
            f"{path}: no file, no saved folder, and not readable from the Hub: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _saved_folder(path: Path) -> Dataset | DatasetDict:
    try:
        return datasets.load_from_disk(str(path))
    except IndexError as error:  # datasets cannot read back a part that it saved without rows
        raise HftuneError(f"{path}: a part of it has no rows") from error
    except (FileNotFoundError, ValueError) as error:
        files = sorted(item.name for item in path.iterdir() if item.suffix in READERS)
        hint = f"files in it: {', '.join(files)}; name one, or a glob" if files else None
        raise HftuneError(f"{path}: not a saved datasets folder", hint=hint) from error


def _split(source: DatasetDict, split: str, key: str, path: Any) -> Dataset:
    if split not in source:
        raise HftuneError(f"{key}: {path} has no {split!r}; splits: {', '.join(source)}")
    return _not_empty(source[split], f"{path} [{split}]")


def _not_empty(rows: Dataset, path: Any) -> Dataset:
    if len(rows) == 0:
        raise HftuneError(f"{path}: no rows")
    return rows


def _read_files(files: list[Path]) -> Dataset:
    tables: list[pa.Table] = []
    for file in files:
        if file.suffix not in READERS:
            raise HftuneError(f"{file}: unknown kind of file; known: {', '.join(READERS)}")
        if file.stat().st_size == 0:
            raise HftuneError(f"{file}: the file is empty")
        table = READERS[file.suffix](file)
        if table.num_rows == 0:
            raise HftuneError(f"{file}: no rows")
        if tables and sorted(table.schema.names) != sorted(tables[0].schema.names):
            raise HftuneError(
                f"{file}: columns {table.schema.names} differ from {tables[0].schema.names} "
                f"of {files[0]}"
            )
        tables.append(table)
    try:
        return Dataset(pa.concat_tables(tables, promote_options="permissive"))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise HftuneError(f"{files[0]} and others: column types differ: {error}") from error


def _read_csv(file: Path) -> pa.Table:
    _check_utf8(file)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        header = next(csv.reader(lines), [])
    _check_columns(file, header)
    try:
        return pa.csv.read_csv(
            file,
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise HftuneError(f"{file}: {str(error).splitlines()[0]}") from error


def _read_jsonl(file: Path) -> pa.Table:
    _check_utf8(file)
    rows = []
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_unique_keys)
            except ValueError as error:
                raise HftuneError(f"{file}:{number}: broken json: {error}") from None
            if not isinstance(row, dict):
                raise HftuneError(f"{file}:{number}: a row is an object, not {row!r:.40}")
            rows.append((number, row))
    names = dict.fromkeys(key for _, row in rows for key in row)
    return pa.table({name: _column(file, name, rows) for name in names})


def _column(file: Path, name: str, rows: list[tuple[int, dict[str, Any]]]) -> pa.Array:
    values = [row.get(name) for _, row in rows]
    try:
        return pa.array(values)
    except (OverflowError, UnicodeEncodeError) as error:
        raise HftuneError(f"{file}: column {name!r}: {error}") from None
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        kinds: dict[str, int] = {}
        for number, row in rows:
            kinds.setdefault(type(row.get(name)).__name__, number)
        seen = ", ".join(f"{kind} in line {number}" for kind, number in kinds.items())
        raise HftuneError(f"{file}: column {name!r} mixes types: {seen}") from None


def _read_parquet(file: Path) -> pa.Table:
    try:
        _check_columns(file, pa.parquet.read_schema(file).names)
        return pa.parquet.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise HftuneError(f"{file}: broken parquet: {str(error).splitlines()[0]}") from error


READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    **dict.fromkeys((".conll", ".bio", ".iob"), read_conll),
}


def _check_utf8(file: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    with file.open("rb") as source:
        while chunk := source.read(1 << 20):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                raise HftuneError(
                    f"{file}: not UTF-8 at byte {position - pending + error.start}",
                    hint="save it as UTF-8, for one with: iconv -f latin1 -t utf-8",
                ) from None
            position += len(chunk)
        if decoder.getstate()[0]:
            raise HftuneError(f"{file}: not UTF-8 at byte {position - len(decoder.getstate()[0])}")


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


def _nearby(path: Path) -> str | None:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    files = sorted(item.name for item in folder.iterdir() if item.suffix in READERS)
    return f"files in {folder}: {', '.join(files[:8])}" if files else None
