# SPDX-License-Identifier: Apache-2.0
"""Build the row sampler of ``data.sampling`` or ``data.curriculum``."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from hftune.core.console import say
from hftune.core.errors import HftuneError
from hftune.core.registry import named
from hftune.core.suggest import did_you_mean
from hftune.data.arrow import column_array
from hftune.data.sampling import DIFFICULTIES, SAMPLINGS, Difficulty, SamplingName
from hftune.data.sampling.curriculum import DEFAULT_PATIENCE, Curriculum
from hftune.data.sampling.row_sampler import RowSampler
from hftune.data.section import CurriculumChoice, DataSection, SamplingChoice
from hftune.recipe.recipe import Recipe
from hftune.tasks.problem_types.problem_type import as_number
from hftune.tasks.processed import ProcessedDataset
from hftune.tasks.task import Task

#: The column of weights or difficulties, in addition to the task's roles.
DRAWN_BY = "drawn_by"
#: Error of a curriculum without an order.
ALL_ALIKE = "data.curriculum: all training rows are equally hard by {}, so there is no order"


def beside(selected: Dataset, rows: Dataset, data: DataSection) -> Dataset:
    """Return selected rows with the recipe's column of weights or difficulties, if it names one.

    Args:
        selected: The rows, one column a role.
        rows: The same rows before selection.
        data: The recipe's data section.

    Raises:
        HftuneError: There is no such column, or a row has no usable number in it.
    """
    if (by := _column(data)) is None:
        return selected
    key, column = by
    if column not in rows.column_names:
        near = did_you_mean(column, rows.column_names) or ""
        raise HftuneError(
            f"{key}: no column {column!r}{near}", hint=f"columns: {', '.join(rows.column_names)}"
        )
    if len(selected) != len(rows):
        raise HftuneError(f"{key}: rows of this shape are put together anew, without the column")
    numbers = np.empty(len(rows))
    for row, value in enumerate(rows[column][:]):
        number = as_number(value)
        if number is None:
            raise HftuneError(
                f"column {column!r}: row {row + 1} is no finite number: {value!r:.60}"
            )
        if number < 0 and data.sampling is not None:
            raise HftuneError(f"column {column!r}: row {row + 1} has a negative weight: {number}")
        numbers[row] = number
    return selected.add_column(DRAWN_BY, numbers)


def set_aside(rows: Dataset) -> tuple[Dataset, NDArray[np.float64] | None]:
    """Return the rows without the column of :func:`beside`, and the values of that column."""
    if DRAWN_BY not in rows.column_names:
        return rows, None
    numbers = np.asarray(column_array(rows, DRAWN_BY), dtype=np.float64)
    return rows.remove_columns(DRAWN_BY), numbers


def build_row_sampler(
    recipe: Recipe,
    task: Task,
    rows: Dataset,
    values: NDArray[np.float64] | None,
    train: ProcessedDataset,
    judge: Callable[[], NDArray[np.float64]] | None = None,
) -> RowSampler | None:
    """Return the sampler of an epoch's rows; None if each row comes once.

    Args:
        recipe: Its data section names the sampler.
        task: Knows the labels.
        rows: Selected training rows.
        values: Weights or difficulties of the rows, if the recipe names a column.
        train: The same rows encoded, or a sample of them.
        judge: Returns the losses of a reference model; None for a check without training.

    Raises:
        HftuneError: The rows do not suit the sampler.
    """
    data = recipe.data
    if (by := _column(data)) is not None:
        check_aligned(by[0], task, rows, train)
    chosen, curriculum = _choices(data)
    if chosen is not None:
        sampling = _sampling(chosen.name, task, rows, values)
        say(f"sampling: an epoch draws {sampling.size} rows from {len(rows)}")
        return sampling
    if curriculum is None:
        return None
    return _curriculum(recipe, curriculum, values, train, judge)


def _curriculum(
    recipe: Recipe,
    curriculum: CurriculumChoice,
    values: NDArray[np.float64] | None,
    train: ProcessedDataset,
    judge: Callable[[], NDArray[np.float64]] | None,
) -> Curriculum | None:
    """Return the curriculum; None for a check without training."""
    options = dataclasses.asdict(curriculum)
    name, column, _ = (options.pop(key) for key in ("name", "column", "model"))
    if options.pop("advance") == "plateau" and options["patience"] is None:
        options["patience"] = DEFAULT_PATIENCE
    if DIFFICULTIES[name].needs_reference and judge is None:
        return None  # a check needs no curriculum
    difficulty = _difficulty(name, values, train, judge)
    if np.ptp(difficulty) == 0:
        raise HftuneError(ALL_ALIKE.format(name if column is None else f"column {column!r}"))
    given = recipe.training
    seed = given["seed"] if given.get("data_seed") is None else given["data_seed"]
    if train.sampled_from is not None:
        return None  # a check of a sample needs no curriculum
    return Curriculum(difficulty, **options, seed=seed)


def drawn_counts(
    row_sampler: RowSampler | None, task: Task, rows: Dataset, counts: NDArray[np.integer[Any]]
) -> NDArray[Any]:
    """Return the average number of rows of each class in an epoch, by id.

    Args:
        row_sampler: The sampler of the rows, if any.
        task: Knows the labels.
        rows: Selected training rows.
        counts: Number of rows of each class.
    """
    expected = None if row_sampler is None else row_sampler.expected()
    if expected is None or not task.one_class:
        return counts
    return np.bincount(_classes(task, rows), weights=expected, minlength=len(counts))


def _column(data: DataSection) -> tuple[str, str] | None:
    """Return the key that names a column of weights or difficulties, and the column."""
    for key, choice in zip(("sampling", "curriculum"), _choices(data), strict=True):
        if choice is not None and choice.column is not None:
            return f"data.{key}.column", choice.column
    return None


def _choices(data: DataSection) -> tuple[SamplingChoice | None, CurriculumChoice | None]:
    """Return sampling and curriculum; a checked recipe has no short forms."""
    return cast("SamplingChoice | None", data.sampling), cast(
        "CurriculumChoice | None", data.curriculum
    )


def check_aligned(key: str, task: Task, rows: Dataset, train: ProcessedDataset) -> None:
    """Raise if encoding does not keep exactly one row for each selected row.

    Args:
        key: Key of the recipe for the message.
        task: Task that selected the rows.
        rows: Selected rows.
        train: The same rows encoded.
    """
    if not task.one_row_each(rows):
        raise HftuneError(f"{key}: plain text is cut into blocks, which have no column")
    if train.expanded:
        raise HftuneError(
            f"{key}: the chat template makes several rows of a conversation",
            hint="give conversations of one assistant turn",
        )
    if train.num_without_labels:
        raise HftuneError(
            f"{key}: {train.num_without_labels} of {len(rows)} training rows have no trained token",
            hint="leave those rows out, or raise data.max_length",
        )


def _sampling(
    name: SamplingName, task: Task, rows: Dataset, values: NDArray[np.float64] | None
) -> RowSampler:
    build: Callable[[NDArray[Any]], RowSampler] = named(str(SAMPLINGS[name].target))
    if SAMPLINGS[name].reads_column:
        assert values is not None, "a rule asks for the column"
        if not values.any():
            raise HftuneError("data.sampling: the weights of all training rows are zero")
        return build(values)
    if not task.one_class:
        raise HftuneError(
            f"data.sampling: {name} goes by the class of a row, and these have no single label",
            hint="name: weighted draws by a column of weights",
        )
    return build(_classes(task, rows))


def _classes(task: Task, rows: Dataset) -> NDArray[np.int64]:
    ids = {name: index for index, name in enumerate(task.label_names)}
    return np.asarray([ids[label] for label in rows["label"][:]], dtype=np.int64)


def _difficulty(
    name: Difficulty,
    values: NDArray[np.float64] | None,
    train: ProcessedDataset,
    judge: Callable[[], NDArray[np.float64]] | None,
) -> NDArray[np.float64]:
    row = DIFFICULTIES[name]
    if row.needs_reference:
        assert judge is not None, "_curriculum has returned for a check"
        return judge()
    if row.target is None:
        assert values is not None, "a rule asks for the column"
        return values
    measure: Callable[[Any], NDArray[np.float64]] = named(row.target)
    return measure(column_array(train.dataset, "input_ids"))
