# SPDX-License-Identifier: Apache-2.0
"""Train on a stream of rows: read and tokenize them when they are needed.

A stream is endless: after its last row it starts again in another order. So processes need not
agree on the end of an epoch, and each of them takes every n-th row.
"""

import re
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features
from datasets import IterableDataset as Rows
from torch.utils.data import IterableDataset
from transformers import TrainingArguments

from hftune.core.errors import HftuneError, RunError
from hftune.data.load_rows import DEMO, load_split
from hftune.data.shapes import NothingToTrainError
from hftune.data.source_files import source_files
from hftune.data.stream import PLACE, stream_files, stream_hub
from hftune.recipe.recipe import Recipe
from hftune.tasks.processors import Processor
from hftune.tasks.reader import choose_columns, read_more_rows, select_rows
from hftune.tasks.task import Task
from hftune.training.plan.examples import Examples

HEAD = 200  # rows that are read before training
SHUFFLE_BUFFER = 10_000
TOGETHER = {
    "text": 256
}  # rows tokenized together, by role; plain text is joined and cut into blocks
TOGETHER_ELSE = 16
ITS_NUMBER = re.compile(r" (in )?row 1\b")  # the name of the only row in a message


class TokenStream(IterableDataset[dict[str, Any]]):
    """An endless stream of preprocessed rows for one process.

    Args:
        rows: The rows of an epoch.
        columns: Role to column name.
        task: Selects and encodes the rows.
        processor: The base model's.
        max_length: Largest number of tokens in a row.
        process: Number of this process.
        processes: Number of all processes.
    """

    def __init__(
        self,
        rows: Rows,
        columns: dict[str, str],
        task: Task,
        processor: Processor,
        max_length: int | None,
        *,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.rows = rows
        self.columns = columns
        self.task = task
        self.processor = processor
        self.max_length = max_length
        self.process = process
        self.processes = processes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        size = next((TOGETHER[role] for role in self.columns if role in TOGETHER), TOGETHER_ELSE)
        for epoch in count():
            self.rows.set_epoch(epoch)
            trained = 0
            mine = islice(self.rows, self.process, None, self.processes)
            while batch := list(islice(mine, size)):
                for row in self._encoded(batch):
                    trained += 1
                    yield row
            if not trained:
                raise RunError(
                    f"the stream has no row to train on for process {self.process + 1} of "
                    f"{self.processes}"
                )

    def _encoded(self, batch: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        try:
            yield from self.task.preprocess(
                self._selected(batch), self.processor, self.max_length
            ).dataset
        except NothingToTrainError:
            return

    def _selected(self, batch: list[dict[str, Any]]) -> Dataset:
        try:
            return selected(batch, self.columns, self.task, self.rows.features)
        except NothingToTrainError:
            raise
        except HftuneError as error:
            raise RunError(error.message, hint=error.hint) from error


def selected(
    batch: list[dict[str, Any]],
    columns: dict[str, str],
    task: Task,
    features: Features | None = None,
) -> Dataset:
    """Return rows of a stream in the task's columns; missing cells become None.

    Args:
        batch: Rows as they were read.
        columns: Role to column name.
        task: Selects the rows.
        features: Types of the columns, as far as ``datasets`` knows them.

    Raises:
        HftuneError: A row does not fit the task or the rows before it; the message names its place.
    """
    try:
        return _selected_together(batch, columns, task, features)
    except NothingToTrainError:
        raise
    except HftuneError as error:
        for number, row in enumerate(batch):
            # A row may be wrong by itself, or its cells may have other types than the first row's.
            for together in ([row], [batch[0], row] if number else [row]):
                try:
                    _selected_together(together, columns, task, features)
                except NothingToTrainError:
                    continue
                except HftuneError as its:
                    place = row.get(PLACE, "a row of the stream")
                    message = ITS_NUMBER.sub("", its.message, count=1)
                    raise HftuneError(f"{place}: {message}", hint=its.hint) from error
        raise


def _selected_together(
    batch: list[dict[str, Any]], columns: dict[str, str], task: Task, features: Features | None
) -> Dataset:
    names = dict.fromkeys(columns.values())
    known = {name: features[name] for name in names if name in features} if features else {}
    cells = {name: [row.get(name) for row in batch] for name in names}
    try:
        whole = Features(known) if len(known) == len(cells) else None
        table = Dataset.from_dict(cells, features=whole)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        raise HftuneError(_mixed(cells)) from None
    return select_rows(task, table, columns)


def _mixed(cells: dict[str, list[Any]]) -> str:
    """Describe the columns whose cells have different types."""
    kinds = {name: sorted({type(c).__name__ for c in cells[name]} - {"NoneType"}) for name in cells}
    mixed = [f"column {n!r} mixes {' and '.join(k)}" for n, k in kinds.items() if len(k) > 1]
    return "; ".join(mixed) or f"the cells of {', '.join(cells)} do not go together"


def open_stream(recipe: Recipe, task: Task) -> Examples:
    """Return the first rows, the validation rows and the stream of training rows.

    Raises:
        HftuneError: The source is missing, or its first rows do not fit the task.
    """
    data, training = recipe.data, recipe.training
    assert isinstance(data.path, str | list), "the recipe's check asks for it"
    path = data.path if isinstance(data.path, str) else [str(item) for item in data.path]
    files = source_files(path)
    rows, given = _opened(recipe, path, files)
    held_out = int(data.validation_size) if data.validation is None else 0
    head = list(islice(rows, held_out + HEAD))
    if len(head) <= held_out:
        raise HftuneError(f"{path}: {len(head)} rows, of which {held_out} are to be held out")
    columns = choose_columns(task, [name for name in head[0] if name != PLACE], data.columns)
    validation = None
    if given is not None:
        validation = read_more_rows(task, given, columns)
    task.streamed = True
    head_rows = selected(head, columns, task, rows.features)
    if held_out:
        validation = head_rows.select(range(held_out))
    first = head_rows.select(range(held_out, len(head_rows)))
    if held_out:
        rows = rows.skip(held_out)
    if data.max_train_samples is not None:
        rows = rows.take(data.max_train_samples)
        first = first.select(range(min(len(first), data.max_train_samples)))
    if training.get("train_sampling_strategy", "random") == "random":
        data_seed = training.get("data_seed")
        seed = training["seed"] if data_seed is None else data_seed
        rows = rows.shuffle(seed=seed, buffer_size=data.shuffle_buffer_size or SHUFFLE_BUFFER)
    if validation is not None and data.max_eval_samples is not None:
        validation = validation.select(range(min(len(validation), data.max_eval_samples)))
    sources = {str(file): f"streamed, {file.stat().st_size} bytes" for file in files}
    return Examples(first, validation, columns, sources or str(path), stream=rows)


def _opened(recipe: Recipe, path: str | list[str], files: list[Path]) -> tuple[Rows, Any]:
    """Return the stream, and all validation rows that the recipe names."""
    data = recipe.data
    if files:
        for key in ("name", "split", "revision"):
            if getattr(data, key) is not None:
                raise HftuneError(f"data.{key}: {path} is a file; only Hub data sets have one")
        held_out = None if data.validation is None else load_split(data.validation, "validation")
        return stream_files(files), held_out
    if not isinstance(path, str):
        raise HftuneError("data.path: an empty list of files")
    if path == DEMO or Path(path).is_dir():
        raise HftuneError(
            f"data.streaming: {path} is no file and no Hub data set",
            hint="a saved datasets folder is read from the disk as it is needed; leave it out",
        )
    splits = stream_hub(path, data.name, data.revision)
    split = data.split or "train"
    if split not in splits:
        raise HftuneError(f"data.split: {path} has no {split!r}; splits: {', '.join(splits)}")
    if isinstance(data.validation, str) and data.validation in splits:
        held_out = splits[data.validation]
        return splits[split], Dataset.from_list(list(held_out), features=held_out.features)
    held_out = None if data.validation is None else load_split(data.validation, "validation")
    return splits[split], held_out


def token_stream(
    rows: Rows,
    columns: dict[str, str],
    task: Task,
    processor: Processor,
    max_length: int | None,
    arguments: TrainingArguments,
) -> TokenStream:
    """Return this process's part of a stream."""
    return TokenStream(
        rows,
        columns,
        task,
        processor,
        max_length,
        process=arguments.process_index,
        processes=arguments.world_size,
    )
