# SPDX-License-Identifier: Apache-2.0
"""Find the files of a path, and read their rows as one table.

Large files are read once for their content: their rows lie in an Arrow file of the cache, keyed by
the SHA-256 of the bytes, and are mapped into memory from there.
"""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetDict

from hftune.core import cache
from hftune.core.console import say
from hftune.core.errors import HftuneError
from hftune.core.files import sha256_of
from hftune.data.arrow import MISMATCH, clashes, joined, mapped, write_arrow
from hftune.data.readers import READERS, READERS_VERSION, SAMPLE_BY, is_known, read
from hftune.data.source import Source, kind_of

#: Files of fewer bytes are read anew each time and kept in memory.
CACHED_BYTES = 2**23
ROWS_FILE = "rows.arrow"
#: Suffixes of files that are surely meant as data, though none can read them.
OTHER_SUFFIXES = (".xls", ".xlsx", ".zip", ".gz", ".bz2", ".xz", ".zst", ".tar", ".arrow", ".ods")
#: Files that may lie beside the data in a folder.
BESIDE_DATA = (".md", ".yaml", ".yml")
_SPLIT_FILE = re.compile(r"(train|validation|test)(-\d+-of-\d+)?")


def source_files(path: str | list[str]) -> list[Path]:
    """Return the files that a path stands for; none for a saved folder, a Hub id or demo data.

    Raises:
        HftuneError: A file does not exist, a glob matches nothing, a folder holds no data.
    """
    if isinstance(path, list):
        files = [(item, source_files(item)) for item in path]
        strange = [item for item, found in files if not found]
        if strange:
            raise HftuneError(
                f"a list holds files alone; no such file: {', '.join(map(str, strange))}"
            )
        return [file for _, found in files for file in found]
    if glob.has_magic(path) and not Path(path).exists():
        matches = sorted(Path(match) for match in glob.glob(path, recursive=True))
        if not matches:
            raise HftuneError(f"{path}: the glob matches no file")
        return matches
    if Path(path).is_file():
        return [Path(path)]
    if Path(path).is_dir():
        return [] if is_saved_folder(Path(path)) else folder_files(Path(path))
    if Path(path).suffix in OTHER_SUFFIXES and not is_known(Path(path)):
        raise HftuneError(f"{path}: {_unknown()}")
    if is_known(Path(path)):
        raise HftuneError(f"{path}: no such file", hint=_nearby(Path(path)))
    return []


def is_saved_folder(folder: Path) -> bool:
    """Tell whether ``save_to_disk`` wrote the folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def folder_files(folder: Path) -> list[Path]:
    """Return the data files of a folder, in the order of their names.

    Raises:
        HftuneError: There is none, there are files of several kinds, or of an unknown one.
    """
    items = sorted(item for item in folder.iterdir() if not item.name.startswith((".", "_")))
    files = [
        item
        for item in items
        if item.is_file() and item.suffix not in BESIDE_DATA and item.name != "LICENSE"
    ]
    strange = [file.name for file in files if not is_known(file)]
    if not files:
        inside = [item.name for item in items if item.is_dir()]
        hint = (
            f"folders in it: {', '.join(inside[:8])}; name one, or a glob" if inside else _kinds()
        )
        raise HftuneError(f"{folder}: no file with rows in the folder", hint=hint)
    kinds = sorted({kind_of(file) for file in files})
    if strange or len(kinds) > 1:
        what = f"{', '.join(strange[:8])}: {_unknown()}" if strange else f"{' and '.join(kinds)}"
        raise HftuneError(
            f"{folder}: a folder of rows holds files of one kind, not {what}",
            hint=f"name the files by a glob, such as {folder}/*{kinds[-1]}",
        )
    return files


def read_folder(folder: Path, sample_by: str | None = None) -> Dataset | DatasetDict:
    """Return the rows of a folder; its splits where files are named ``train``, ``test`` ....

    Raises:
        HftuneError: Some files are named after splits and some are not, or reading fails.
    """
    files = folder_files(folder)
    named: dict[str, list[Path]] = {}
    for file in files:
        if match := _SPLIT_FILE.fullmatch(file.name.split(".")[0]):
            named.setdefault(match[1], []).append(file)
    if not named or (list(named) == ["train"] and len(named["train"]) == len(files)):
        return read_files(files, sample_by)
    others = [file.name for file in files if not any(file in group for group in named.values())]
    if others:
        raise HftuneError(
            f"{folder}: files of the splits {', '.join(named)} beside others: {', '.join(others)}",
            hint="name the files by globs: data.path and data.validation",
        )
    parts = {name: read_files(group, sample_by) for name, group in named.items()}
    _check_agreement(
        [group[0] for group in named.values()], [rows.data.schema for rows in parts.values()]
    )
    return DatasetDict(parts)


def read_files(files: Sequence[Path], sample_by: str | None = None) -> Dataset:
    """Return the rows of all files, in their order.

    Args:
        files: Of known kinds; their columns must agree.
        sample_by: What a row of a txt file is: ``line``, ``paragraph`` or ``document``.

    Raises:
        HftuneError: A file is of an unknown kind, empty or broken, or columns differ.
    """
    for file in files:
        if not is_known(file):
            raise HftuneError(f"{file}: {_unknown()}")
    others = [file for file in files if kind_of(file) != ".txt"]
    if sample_by is not None and others:
        raise HftuneError(f"data.sample_by: {others[0]} is no txt file")
    if sample_by not in (None, *SAMPLE_BY):
        raise HftuneError(f"data.sample_by: {sample_by!r}; known: {', '.join(SAMPLE_BY)}")
    tables: list[pa.Table] = []
    keys: list[str] = []
    for file in files:
        table, key = _read_file(Source(file, sample_by or "line"))
        if tables:
            _check_agreement([files[0], file], [tables[0].schema, table.schema])
        tables.append(table)
        keys.append(key)
    try:
        table = tables[0] if len(tables) == 1 else joined(tables)
    except MISMATCH as error:
        raise HftuneError(f"{files[0]} and others: column types differ: {error}") from error
    return Dataset(table, fingerprint=cache.digest(*keys)[:16])


def _read_file(source: Source) -> tuple[pa.Table, str]:
    """Return the rows, and the key of their content."""
    file = source.file
    decides = READERS_VERSION, pa.__version__, source.kind, source.sample_by, sha256_of(file)
    key = cache.digest(*decides)
    try:
        if file.stat().st_size < CACHED_BYTES:
            return joined(read(source)), key

        def fill(folder: Path) -> None:
            say(f"reading {file}, once for this content")
            write_arrow(read(source), folder / ROWS_FILE)

        return mapped(cache.found_or_written("rows", key, fill) / ROWS_FILE), key
    except MISMATCH as error:
        raise HftuneError(f"{file}: column types differ between rows: {error}") from error


def _check_agreement(files: Sequence[Path], schemas: Sequence[pa.Schema]) -> None:
    first, expected = files[0], schemas[0]
    for file, schema in zip(files[1:], schemas[1:], strict=True):
        if sorted(schema.names) != sorted(expected.names):
            raise HftuneError(
                f"{file}: columns {schema.names} differ from {expected.names} of {first}",
                hint="sources of their own may have other columns: "
                "data.path: [{path: ..., columns: {...}}, ...]",
            )
        if wrong := clashes(expected, schema):
            types = "; ".join(
                f"{name!r} is {schema.field(name).type} here and {expected.field(name).type} there"
                for name in wrong
            )
            raise HftuneError(f"{file} and {first}: column types differ: {types}")


def _unknown() -> str:
    return f"unknown kind of file; {_kinds()}"


def _kinds() -> str:
    return f"known: {', '.join(READERS)}, and .gz of the text kinds"


def _nearby(path: Path) -> str | None:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    files = sorted(item.name for item in folder.iterdir() if is_known(item))
    return f"files in {folder}: {', '.join(files[:8])}" if files else None
