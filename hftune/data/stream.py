# SPDX-License-Identifier: Apache-2.0
"""Rows read one after the other, for data that do not fit: files line by line, or from the Hub."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
from datasets import IterableDataset, IterableDatasetDict

from hftune.core.errors import HftuneError, RunError

#: The column that tells where a row of a file stands, for messages.
PLACE = "_place"
ROWS_OF_PARQUET = 256


def stream_files(files: list[Path]) -> IterableDataset:
    """Return the rows of files, as text from csv and txt, each with its ``file:line``.

    A line of a txt file is a row with the column ``text``; empty lines are left out.

    Raises:
        HftuneError: The kind of a file is unknown.
    """
    for file in files:
        if file.suffix not in READERS:
            raise HftuneError(
                f"{file}: this kind of file cannot be streamed; known: {', '.join(READERS)}"
            )
    names = [str(file) for file in files]
    return IterableDataset.from_generator(_rows_of, gen_kwargs={"files": names})


def stream_hub(path: str, name: str | None, revision: str | None) -> IterableDatasetDict:
    """Return the splits of a Hub data set, whose rows are read as they arrive.

    Raises:
        HftuneError: It is not there.
    """
    try:
        splits: IterableDatasetDict = datasets.load_dataset(
            path, name, revision=revision, streaming=True
        )
    except (OSError, ValueError) as error:
        raise HftuneError(
            f"{path}: no file, and not readable from the Hub: {str(error).splitlines()[0]}"
        ) from error
    return splits


def _rows_of(files: list[str]) -> Iterator[dict[str, Any]]:
    for name in files:
        number = 0
        try:
            for number, row in READERS[Path(name).suffix](Path(name)):
                if not isinstance(row, dict):
                    raise RunError(f"{name}:{number}: a row is an object, not {row!r:.40}")
                yield {**row, PLACE: f"{name}:{number}"}
        except UnicodeDecodeError as error:
            raise RunError(f"{name}: not UTF-8 after line {number}: {error.reason}") from None
        except json.JSONDecodeError as error:
            raise RunError(f"{name}: broken json after line {number}: {error}") from None
        except csv.Error as error:
            raise RunError(f"{name}: broken csv after line {number}: {error}") from None
        except pa.ArrowInvalid as error:
            raise RunError(f"{name}: broken parquet: {str(error).splitlines()[0]}") from None


def _jsonl(file: Path) -> Iterator[tuple[int, Any]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, json.loads(line)


def _csv(file: Path) -> Iterator[tuple[int, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        header = next(reader, [])
        for cells in reader:
            if len(cells) != len(header):
                raise csv.Error(f"{len(cells)} cells below {len(header)} columns")
            yield reader.line_num, dict(zip(header, cells, strict=True))


def _txt(file: Path) -> Iterator[tuple[int, Any]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, {"text": line.rstrip("\n")}


def _parquet(file: Path) -> Iterator[tuple[int, Any]]:
    with pa.parquet.ParquetFile(file) as table:
        number = 0
        for batch in table.iter_batches(ROWS_OF_PARQUET):
            for row in batch.to_pylist():
                number += 1
                yield number, row


READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet, ".txt": _txt}
