# SPDX-License-Identifier: Apache-2.0
"""A part of many rows as tokens: streamed into the cache and found again, or a sample of it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import transformers
from datasets import Dataset

from hftune.core import cache
from hftune.core.console import console, say
from hftune.data.arrow import mapped, write_arrow
from hftune.data.row_digest import rows_key
from hftune.tasks.processed import NothingTrainedError, ProcessedDataset
from hftune.tasks.processors import Processor
from hftune.tasks.task import Task

#: Part of the cache's key: raise it when a task encodes differently.
ENCODING_VERSION = 2
#: Parts of at most so many rows are encoded at once and kept in memory.
AT_ONCE = 20_000
CHUNK = 5_000
TOKENS_FILE, COUNTS_FILE = "tokens.arrow", "counts.json"
#: What a task knows that decides no token.
NOT_ENCODED = {"external_metrics", "tokenizer"}


def preprocess_split(
    task: Task,
    rows: Dataset,
    processor: Processor,
    max_length: int | None,
    *,
    sample: int | None = None,
    seed: int = 0,
) -> ProcessedDataset:
    """Return selected rows as tokens; see :meth:`hftune.tasks.task.Task.preprocess`.

    Args:
        task: Encodes.
        rows: Selected rows.
        processor: The model's.
        max_length: Tokens a row may have.
        sample: Of more rows than ``AT_ONCE`` encode so many, drawn by ``seed``.
        seed: Of the draw.

    Raises:
        HftuneError: No row can be trained on.
    """
    if sample is not None and len(rows) > AT_ONCE:
        drawn = np.sort(np.random.default_rng(seed).permutation(len(rows))[:sample])
        encoded = preprocess_split(task, rows.select(drawn), processor, max_length)
        return replace(encoded, sampled_from=len(rows))
    if len(rows) <= AT_ONCE:
        return task.preprocess(rows, processor, max_length)
    key = _key(task, rows, processor, max_length)

    def fill(folder: Path) -> None:
        say(f"tokenizing {len(rows)} rows, once for this content")
        _write(task, rows, processor, max_length, folder)

    folder = cache.found_or_written("tokens", key, fill)
    return ProcessedDataset(
        Dataset(mapped(folder / TOKENS_FILE), fingerprint=key[:16]),
        **json.loads((folder / COUNTS_FILE).read_text(encoding="utf-8")),
    )


def _write(
    task: Task,
    rows: Dataset,
    processor: Processor,
    max_length: int | None,
    folder: Path,
) -> None:
    counts: dict[str, Any] = {"num_truncated": 0, "num_without_labels": 0, "sizes": []}

    def tables() -> Iterator[pa.Table]:
        for start in _tracked(range(0, len(rows), CHUNK)):
            chunk = rows.select(range(start, min(start + CHUNK, len(rows))))
            try:
                encoded = task.preprocess(chunk, processor, max_length)
            except NothingTrainedError as nothing:
                encoded = nothing.encoded
            counts["num_truncated"] += encoded.num_truncated
            counts["num_without_labels"] += encoded.num_without_labels
            counts["sizes"] += encoded.sizes
            if len(encoded.dataset):
                yield encoded.dataset.data.table
        if counts["num_without_labels"] == len(rows):
            raise NothingTrainedError(len(rows), max_length, ProcessedDataset(rows.select([])))

    write_arrow(tables(), folder / TOKENS_FILE)
    (folder / COUNTS_FILE).write_text(json.dumps(counts), encoding="utf-8")


def _tracked(starts: range) -> Iterator[int]:
    from rich.progress import track

    yield from track(
        starts, "tokenizing", console=console(), transient=True, disable=not console().is_terminal
    )


def _key(task: Task, rows: Dataset, processor: Processor, max_length: int | None) -> str:
    """Digest of all that decides the tokens."""
    knows = {name: value for name, value in vars(task).items() if name not in NOT_ENCODED}
    said: dict[str, Any] = {
        "versions": [ENCODING_VERSION, transformers.__version__, pa.__version__],
        "task": [task.name, knows],
        "max_length": max_length,
        **task.processor_state(processor),
    }
    return rows_key(rows, rows.column_names, said)
