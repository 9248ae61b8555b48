# SPDX-License-Identifier: Apache-2.0
"""``hftune predict``: a file in, a file out, with labels and scores or with generated text."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from datasets import Dataset

from hftune.core.console import console, say, warn
from hftune.core.errors import HftuneError
from hftune.data.arrow import as_dataset, column_array, joined
from hftune.data.load_rows import load_split
from hftune.runs.run import Run, load
from hftune.tasks.task import PredictArguments

#: Rows predicted and written at once; they are sorted by length, so that little is padding.
CHUNK = 10_000
#: Roles of columns that became conversations in training.
CONVERSATIONS = {"messages", "instruction"}


def predict(
    run: Run | str | Path,
    data: Dataset | str | list[str],
    output: Path | None = None,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 64,
) -> Dataset:
    """Predict rows with a finished run.

    Args:
        run: The run, or its folder.
        data: Rows, or where they are; labels are not needed.
        output: Write the rows here as jsonl, each with its prediction. Until all are there, they
            stand in a file beside it whose name ends in ``.partial``.
        batch_size: Rows a batch.
        max_new_tokens: Length of a generated text.

    Returns:
        The rows with ``prediction`` and, for classifiers, ``score`` (the probability of the
        prediction) and ``scores`` (label to probability).

    Raises:
        HftuneError: The rows lack a column that the task needs.
    """
    from rich.progress import track

    run = load(run) if not isinstance(run, Run) else run
    if output is not None and output.suffix != ".jsonl":
        raise HftuneError(f"{output}: predictions are written as .jsonl")
    rows = data if isinstance(data, Dataset) else load_split(data)
    task, metadata = run.task, run.metadata
    known = {r: c for r, c in metadata.columns.items() if c in rows.column_names}
    selected = task.select(rows, task.columns(rows.column_names, known, answers=False))
    if metadata.columns.keys() & CONVERSATIONS and "prompt" in selected.column_names:
        warn(
            "the model learned from conversations, and these prompts reach it without its chat "
            "template; a column messages or instruction goes through it"
        )
    run.model.eval()
    how = PredictArguments(
        max_length=metadata.max_length, batch_size=batch_size, max_new_tokens=max_new_tokens
    )
    task.prepare_predictions(run.model, run.tokenizer, selected, how)
    starts = range(0, len(rows), CHUNK)
    answered: list[pa.Table] = []
    with nullcontext() if output is None else _growing(output) as file:
        for start in track(
            starts, "all rows", console=console(), transient=True, disable=len(starts) < 2
        ):
            here = range(start, min(start + CHUNK, len(rows)))
            answers = task.predict(run.model, run.tokenizer, selected.select(here), how)
            answered.append(pa.Table.from_pylist(answers))
            if file is not None:
                _write(file, rows.select(here), answers)
    if output is not None:
        say(f"predictions: {output} ({len(rows)} rows)")
    return _merged(rows, joined(answered))


@contextmanager
def _growing(path: Path) -> Iterator[IO[str]]:
    """Open a file that has its name once it is whole; what was written before a crash stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        try:
            yield file
        except BaseException:
            if file.tell():
                warn(f"stopped; the rows that were predicted stand in {partial}")
            else:
                partial.unlink()
            raise
    partial.replace(path)


def _write(file: IO[str], rows: Dataset, answers: list[dict[str, Any]]) -> None:
    for row, answer in zip(rows, answers, strict=True):
        file.write(json.dumps({**row, **answer}, ensure_ascii=False, default=str) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _merged(rows: Dataset, answered: pa.Table) -> Dataset:
    """The rows, still where they lie, with the answers beside them."""
    given = {name: column_array(rows, name) for name in rows.column_names}
    return as_dataset(given | {name: answered[name] for name in answered.column_names})
