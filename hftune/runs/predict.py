# SPDX-License-Identifier: Apache-2.0
"""Predictions of a finished run, a chunk of rows at a time."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from datasets import Dataset

from hftune.core.console import console, warn
from hftune.data.arrow import as_dataset, column_array, joined
from hftune.runs.run import Run
from hftune.tasks.reader import read_more_rows
from hftune.tasks.task import PredictArguments, Task

#: Rows predicted and written at once; they are sorted by length, so that little is padding.
CHUNK = 10_000
#: Roles of columns that became conversations in training.
CONVERSATIONS = {"messages", "instruction"}


def predict_rows(
    run: Run, rows: Dataset, output: Path | None, batch_size: int, max_new_tokens: int
) -> Dataset:
    """Return rows with the predictions of a run, and write them as they come.

    Args:
        run: Finished.
        rows: As they were read from their source; labels are not needed.
        output: A jsonl file to write. Until all rows are there, they stand in a file beside it
            whose name ends in ``.partial``.
        batch_size: Rows a batch.
        max_new_tokens: Length of a generated text.

    Raises:
        HftuneError: The rows lack a column that the task needs.
    """
    from rich.progress import track

    task = run.task  # made anew each time that it is asked for
    selected = _selected(run, task, rows)
    run.model.eval()
    how = PredictArguments(
        max_length=run.metadata.max_length, batch_size=batch_size, max_new_tokens=max_new_tokens
    )
    task.prepare_predictions(run.model, run.processor, selected, how)
    starts = range(0, len(rows), CHUNK)
    answered: list[pa.Table] = []
    with nullcontext() if output is None else _growing(output) as file:
        for start in track(
            starts, "all rows", console=console(), transient=True, disable=len(starts) < 2
        ):
            here = range(start, min(start + CHUNK, len(rows)))
            answers = task.predict(run.model, run.processor, selected.select(here), how)
            answered.append(pa.Table.from_pylist(answers))
            if file is not None:
                _write(file, rows.select(here), answers)
    return _merged(rows, joined(answered))


def _selected(run: Run, task: Task, rows: Dataset) -> Dataset:
    """Select the rows, and warn if they reach a chat model without its template."""
    columns = run.metadata.columns
    selected = read_more_rows(task, rows, columns, answers=False)
    if columns.keys() & CONVERSATIONS and "prompt" in selected.column_names:
        warn(
            "the model learned from conversations, and these prompts reach it without its chat "
            "template; a column messages or instruction goes through it"
        )
    return selected


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
