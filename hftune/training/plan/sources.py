# SPDX-License-Identifier: Apache-2.0
"""Mix several sources in one run: select each by its own columns, split, then mix."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from hftune.core.errors import HftuneError, RecipeError
from hftune.core.files import sha256_of
from hftune.data.arrow import picked
from hftune.data.load_rows import load_split, load_splits
from hftune.data.mixture import interleaved, shares, stacked
from hftune.data.section import DataSection, SourceItem
from hftune.data.source_files import source_files
from hftune.data.split import Keys, split_indices
from hftune.recipe.recipe import Recipe
from hftune.tasks.reader import read_more_rows, read_rows
from hftune.tasks.task import Task

ORIGIN = "_source"
TRAIN_ON_ALL = "set data.validation_size: 0 to train without evaluation"


@dataclass
class Mixture:
    """The rows of several sources in two splits.

    Attributes:
        train: Training rows, mixed.
        validation: Validation rows of all sources without repetition; None if none are held out.
        columns: Role to column name, for the roles on which all sources agree.
        sources: A record of each source for data.json.
    """

    train: Dataset
    validation: Dataset | None
    columns: dict[str, str]
    sources: list[dict[str, object]]


@dataclass(frozen=True)
class SelectedSource:
    """A source and its rows in the task's columns."""

    item: SourceItem
    name: str
    rows: Dataset
    columns: dict[str, str]

    def record(self, train_rows: int, drawn_rows: int, total: int) -> dict[str, object]:
        """Return the record of the source in data.json.

        Args:
            train_rows: Rows of the source that are not held out.
            drawn_rows: Its rows in the mixture, repetitions included.
            total: All rows of the mixture.
        """
        return {
            "path": self.name,
            "files": {str(file): sha256_of(file) for file in source_files(self.item.path)},
            "columns": self.columns,
            "rows": len(self.rows),
            "train_rows": train_rows,
            "drawn_rows": drawn_rows,
            "weight": self.item.weight,
            "share": drawn_rows / total,
        }


def source_items(path: object) -> list[SourceItem]:
    """Return the sources of a list with at least one mapping; none for anything else.

    Example:
        >>> source_items(["a.csv", "b.csv"])  # files of one source
        []
        >>> [item.path for item in source_items(["a.csv", SourceItem(path="b.csv")])]
        ['a.csv', 'b.csv']
    """
    if not isinstance(path, list) or all(isinstance(item, str) for item in path):
        return []
    return [SourceItem(path=item) if isinstance(item, str) else item for item in path]


def read_mixture(
    recipe: Recipe, task: Task, items: list[SourceItem], given: Dataset | None = None
) -> Mixture:
    """Read each source, hold out validation rows, and mix the training rows.

    A text or group in several sources is on one side of the split only.

    Args:
        recipe: Its data section decides split and mixture.
        task: Selects the columns.
        items: The sources.
        given: Validation rows in place of ``data.validation``.

    Raises:
        HftuneError: A source is missing or broken, or the sources do not fit together.
    """
    _check_keys(recipe.data)
    sources = [
        _selected(item, name, task, recipe.data.columns)
        for item, name in zip(items, _names(items), strict=True)
    ]
    sizes = [len(source.rows) for source in sources]
    rows = _grouped(stacked([source.rows for source in sources], [one.name for one in sources]))
    origins = np.repeat(np.arange(len(sources)), sizes)
    chances = shares([item.weight for item in items], sizes)
    train, validation = _held_out(recipe, task, rows, origins, given)
    of_source = [train[origins[train] == number] for number in range(len(sources))]
    _check_rows_left(sources, of_source)
    if chances is None:
        drawn, counts = picked(rows, train), [len(indices) for indices in of_source]
    else:
        drawn, counts = _drawn(rows, origins, of_source, chances, recipe)
    records = [
        source.record(len(indices), count, len(drawn))
        for source, indices, count in zip(sources, of_source, counts, strict=True)
    ]
    agreed = set.intersection(*(set(source.columns.items()) for source in sources))
    return Mixture(drawn, validation, dict(sorted(agreed)), records)


def _check_keys(data: DataSection) -> None:
    for key in ("name", "split", "revision"):
        if getattr(data, key) is not None:
            raise RecipeError([f"data.{key}: say it in the item of data.path that it is for"])


def _check_rows_left(
    sources: Sequence[SelectedSource], of_source: Sequence[NDArray[np.int64]]
) -> None:
    for source, indices in zip(sources, of_source, strict=True):
        if not len(indices):
            raise HftuneError(
                f"{source.name}: all its rows are held out, or stand in another source"
            )


def _held_out(
    recipe: Recipe, task: Task, rows: Dataset, origins: NDArray[np.int64], given: Dataset | None
) -> tuple[NDArray[np.int64], Dataset | None]:
    """Return the indices of the training rows, and the validation rows."""
    data = recipe.data
    if given is None and data.validation is not None:
        given = load_split(data.validation, "validation")
    if given is not None:
        return np.arange(len(rows)), read_more_rows(task, given, data.columns)
    if not data.validation_size:
        return np.arange(len(rows)), None
    train, held_out = hold_out(rows, task, data.validation_size, recipe.training["seed"], origins)
    return train, picked(rows, held_out)


def _drawn(
    rows: Dataset,
    origins: NDArray[np.int64],
    of_source: list[NDArray[np.int64]],
    chances: list[float],
    recipe: Recipe,
) -> tuple[Dataset, list[int]]:
    """Draw rows from the sources by their shares; return the rows and the count of each source."""
    numbered = rows.add_column(ORIGIN, origins)
    pieces = [numbered.select(indices) for indices in of_source]
    drawn = interleaved(pieces, chances, recipe.data.stopping_strategy, recipe.training["seed"])
    counts: list[int] = np.bincount(drawn[ORIGIN][:], minlength=len(pieces)).tolist()
    return drawn.remove_columns(ORIGIN), counts


def hold_out(
    rows: Dataset,
    task: Task,
    size: float | int,
    seed: int,
    origins: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of training and validation rows.

    Args:
        rows: Selected rows.
        task: Gives the groups that stay together and the strata of the split.
        size: A share below 1, or a number of rows.
        seed: Equal seeds give equal splits.
        origins: Number of the source of each row, as a further stratum.

    Raises:
        RecipeError: The size leaves one split empty.
    """
    if size > 1 and size != int(size):
        raise RecipeError(
            [f"data.validation_size: a share below 1 or a number of rows, not {size}"]
        )
    if size >= len(rows):
        raise RecipeError(
            [f"data.validation_size: {size} of {len(rows)} rows leaves none to train"]
        )
    keys, strata = task.split_keys(rows)
    if origins is not None:
        alike = [0] * len(rows) if strata is None else strata
        strata = list(zip(origins.tolist(), alike, strict=True))
    kept, held_out = split_indices(keys, strata, size, seed)
    if not len(held_out):
        raise RecipeError([_nothing_held_out(rows, keys, strata, size)], hint=TRAIN_ON_ALL)
    return kept, held_out


def _nothing_held_out(rows: Dataset, keys: Keys, strata: Keys | None, size: float | int) -> str:
    """Return the reason why no row can be held out."""
    wanted = round(size * len(rows)) if size < 1 else int(size)
    if not wanted:
        return f"data.validation_size: {size} of {len(rows)} rows is none"
    apart = len(np.unique(np.asarray(keys)))
    start = "data: no validation part can be split off: equal texts and groups stay together, and "
    if apart == 1:
        return f"{start}here all rows do"
    if "label" in rows.column_names and strata is not None and apart == len(set(strata)):
        return f"{start}each label has one text or group"
    return f"{start}none of the {apart} blocks that this makes fits the {wanted} rows wanted"


def _selected(item: SourceItem, name: str, task: Task, general: dict[str, str]) -> SelectedSource:
    """Return an item's rows in the task's columns; its own columns override the section's."""
    try:
        rows, _ = load_splits(item.path, name=item.name, split=item.split, revision=item.revision)
        selected, columns = read_rows(task, rows, item.columns or general)
    except HftuneError as error:
        known = error.message.startswith(name)
        message = error.message if known else f"{name}: {error.message}"
        raise HftuneError(message, hint=error.hint) from error
    return SelectedSource(item, name, _text_groups(selected), columns)


def _grouped(rows: Dataset) -> Dataset:
    """Give each row without a group a group of its own, because equal groups stay together."""
    if "group" not in rows.column_names:
        return rows
    groups = [f"no group {n}" if g is None else g for n, g in enumerate(rows["group"])]
    return rows.remove_columns("group").add_column("group", groups)


def _text_groups(rows: Dataset) -> Dataset:
    """Turn groups into text, so that all sources have one type."""
    if "group" not in rows.column_names:
        return rows
    groups = [None if value is None else str(value) for value in rows["group"]]
    return rows.remove_columns("group").add_column("group", groups)


def _names(items: list[SourceItem]) -> list[str]:
    """Return a name for each source: its path, with a number if several sources have that path."""
    paths = [item.path if isinstance(item.path, str) else ", ".join(item.path) for item in items]
    return [
        path if paths.count(path) == 1 else f"{path} ({number})"
        for number, path in enumerate(paths, start=1)
    ]
