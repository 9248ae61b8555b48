# SPDX-License-Identifier: Apache-2.0
"""Rows read one after the other, for data that do not fit: files line by line, or from the Hub."""

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
from datasets import IterableDataset, IterableDatasetDict
from huggingface_hub.constants import HF_HUB_OFFLINE

from hftune.core.errors import HftuneError, RunError, first_line
from hftune.data.readers import is_known, json_row
from hftune.data.source import Source, kind_of

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
        if kind_of(file) not in READERS or not is_known(file):
            raise HftuneError(
                f"{file}: this kind of file cannot be streamed; known: {', '.join(READERS)}, "
                "and .gz of the text kinds"
            )
        if file.stat().st_size == 0:
            raise HftuneError(f"{file}: the file is empty")
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
        raise unreadable(path, error) from error
    return splits


def unreadable(path: str, error: Exception) -> HftuneError:
    """Return the error of a path that is nothing local, and that the Hub did not give."""
    if HF_HUB_OFFLINE and isinstance(error, ConnectionError):
        why = "HF_HUB_OFFLINE is set and the cache does not have it"
        hint = "unset HF_HUB_OFFLINE where the Hub can be reached, or name local files"
    else:
        why = first_line(error)
        hint = "a Hub id is OWNER/NAME; a private one needs a login"
    return HftuneError(
        f"{path}: no file, no folder, and not readable from the Hub: {why}", hint=hint
    )


def _rows_of(files: list[str]) -> Iterator[dict[str, Any]]:
    for name in files:
        number = 0
        try:
            for number, row in READERS[kind_of(Path(name))](Source(Path(name))):
                yield {**row, PLACE: f"{name}:{number}"}
        except HftuneError as error:
            raise RunError(error.message, hint=error.hint) from None
        except UnicodeDecodeError as error:
            raise RunError(f"{name}: not UTF-8 after line {number}: {error.reason}") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise RunError(
                f"{name}: damaged gzip after line {number}: {error}",
                hint="copy or download the file again",
            ) from None
        except csv.Error as error:
            raise RunError(f"{name}: broken csv after line {number}: {error}") from None
        except pa.ArrowInvalid as error:
            raise RunError(f"{name}: broken parquet: {first_line(error)}") from None


def _jsonl(source: Source) -> Iterator[tuple[int, Any]]:
    with source.text() as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, json_row(f"{source.file}:{number}", line)


def _csv(source: Source) -> Iterator[tuple[int, Any]]:
    with source.text() as lines:
        lines.reconfigure(newline="")
        reader = csv.reader(lines, strict=True)
        header = next(reader, [])
        for cells in reader:
            if len(cells) != len(header):
                raise csv.Error(f"{len(cells)} cells below {len(header)} columns")
            yield reader.line_num, dict(zip(header, cells, strict=True))


def _txt(source: Source) -> Iterator[tuple[int, Any]]:
    with source.text() as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, {"text": line.rstrip("\n")}


def _parquet(source: Source) -> Iterator[tuple[int, Any]]:
    with pa.parquet.ParquetFile(source.file) as table:
        number = 0
        for batch in table.iter_batches(ROWS_OF_PARQUET):
            for row in batch.to_pylist():
                number += 1
                yield number, row


READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet, ".txt": _txt}
