# SPDX-License-Identifier: Apache-2.0
"""Read training and validation rows, from the recipe's data section or from Python."""

from dataclasses import dataclass
from typing import cast

import numpy as np
from datasets import Dataset, IterableDataset
from numpy.typing import NDArray

from hftune.core.errors import HftuneError, RecipeError
from hftune.core.files import sha256_of
from hftune.data import DEMO_DATA
from hftune.data.arrow import picked
from hftune.data.load_rows import DEMO, load_split, load_splits
from hftune.data.section import SourceItem
from hftune.data.select import blank_rows
from hftune.data.slices import is_slice
from hftune.data.source_files import source_files
from hftune.distillation.unlabelled import set_unlabelled_apart, unlabelled_rows
from hftune.recipe.recipe import Recipe
from hftune.tasks.reader import choose_columns, read_more_rows, select_rows
from hftune.tasks.task import Task
from hftune.training.plan.choose_sampler import beside, set_aside
from hftune.training.plan.sources import hold_out, read_mixture, source_items

TEXTS = ("text", "prompt", "completion", "target")
HANDED_OVER = "rows handed over in Python"


@dataclass
class Examples:
    """Selected rows before tokenization, one column a role.

    Attributes:
        train: Training rows.
        validation: Validation rows, if there are any.
        columns: Role to column name.
        sources: SHA-256 of each file, a record of each of several sources, or another origin.
        unlabelled: Training rows without labels, for a teacher.
        drawn_by: Weights or difficulties of the training rows, if the recipe names a column.
        stream: The streamed training rows, if any; ``train`` then holds the first of them.
    """

    train: Dataset
    validation: Dataset | None
    columns: dict[str, str]
    sources: dict[str, str] | list[dict[str, object]] | str
    drawn_by: NDArray[np.float64] | None = None
    unlabelled: Dataset | None = None
    stream: IterableDataset | None = None

    @property
    def empty_texts(self) -> int:
        """Number of training rows with an empty text, prompt, completion or target."""
        present = [name for name in TEXTS if name in self.train.column_names]
        return blank_rows(self.train, present)


def read_examples(
    recipe: Recipe, task: Task, train: Dataset | None, validation: Dataset | None
) -> Examples:
    """Read and select rows, hold out validation rows if none are given, and draw samples.

    Args:
        recipe: Its data section names the rows and the split.
        task: Selects the columns.
        train: Rows in place of ``data.path``.
        validation: Rows in place of ``data.validation``.

    Raises:
        HftuneError: Rows are missing or broken, or the columns cannot be guessed.
    """
    data, seed = recipe.data, recipe.training["seed"]
    if train is None and (items := source_items(data.path)):
        return _examples_of_sources(recipe, task, items, validation)
    given, held_out = _given_rows(recipe, train, validation)
    named = data.columns if train is not None else _named_columns(recipe)
    columns = choose_columns(task, given.column_names, named)
    given, bare = set_unlabelled_apart(recipe.distillation, data, task, given, columns)
    rows = beside(select_rows(task, given, columns), given, data)
    if held_out is not None:
        selected: Dataset | None = read_more_rows(task, held_out, columns)
    else:
        rows, selected = _split(rows, task, data.validation_size, seed)
    chosen, drawn_by = set_aside(_sample(rows, data.max_train_samples, seed))
    if selected is not None:
        selected, _ = set_aside(_sample(selected, data.max_eval_samples, seed))
    return Examples(
        train=chosen,
        validation=selected,
        columns=columns,
        sources=HANDED_OVER if train is not None else _sources(recipe),
        drawn_by=drawn_by,
        unlabelled=unlabelled_rows(data, task, bare, selected),
    )


def _examples_of_sources(
    recipe: Recipe, task: Task, items: list[SourceItem], validation: Dataset | None
) -> Examples:
    data, seed = recipe.data, recipe.training["seed"]
    mixture = read_mixture(recipe, task, items, validation)
    held_out = mixture.validation
    if held_out is not None:
        held_out = _sample(held_out, data.max_eval_samples, seed)
    return Examples(
        train=_sample(mixture.train, data.max_train_samples, seed),
        validation=held_out,
        columns=mixture.columns,
        sources=mixture.sources,
        unlabelled=unlabelled_rows(data, task, None, held_out),
    )


def _given_rows(
    recipe: Recipe, train: Dataset | None, validation: Dataset | None
) -> tuple[Dataset, Dataset | None]:
    data = recipe.data
    if train is not None:
        if len(train) == 0:
            raise HftuneError("train_dataset: no rows")
        if validation is None and data.validation is not None:
            validation = load_split(data.validation, "validation")
        return train, validation
    if data.path is None:
        raise RecipeError(["data.path: missing"], hint="name it, or hand over train_dataset")
    rows, held_out = load_splits(
        cast("str | list[str]", data.path),
        data.validation,
        name=data.name,
        split=data.split,
        revision=data.revision,
        sample_by=data.sample_by,
    )
    if validation is None and data.validation is None and data.validation_size == 0:
        return rows, None
    return rows, validation if validation is not None else held_out


def _named_columns(recipe: Recipe) -> dict[str, str]:
    """Return the columns of the demo rows, overridden by the user's."""
    demo = DEMO_DATA.get(str(recipe.data.path))
    columns = {} if demo is None else demo.columns.get(recipe.task, {})
    return {**columns, **recipe.data.columns}


def _split(
    rows: Dataset, task: Task, size: float | int, seed: int
) -> tuple[Dataset, Dataset | None]:
    if size == 0:
        return rows, None
    kept, held_out = hold_out(rows, task, size, seed)
    return picked(rows, kept), picked(rows, held_out)


def _sample(rows: Dataset, number: int | None, seed: int) -> Dataset:
    if number is None or number >= len(rows):
        return rows
    return picked(rows, np.sort(np.random.default_rng(seed).permutation(len(rows))[:number]))


def _sources(recipe: Recipe) -> dict[str, str] | str:
    data = recipe.data
    paths = [
        cast("str | list[str] | None", data.path),
        None if is_slice(data.validation) else data.validation,
        data.unlabelled,
    ]
    files = [file for path in paths if path and path != DEMO for file in source_files(path)]
    return {str(file): sha256_of(file) for file in files} or str(data.path)
