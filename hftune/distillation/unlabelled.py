# SPDX-License-Identifier: Apache-2.0
"""Training rows without labels: a student learns only the teacher's answers to them.

There are two kinds: rows of ``data.path`` with an empty label, and the rows of ``data.unlabelled``.
They stay apart from the other rows, which give the labels, the classes and the validation split,
until training begins.
"""

from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, concatenate_datasets
from numpy.typing import NDArray

from hftune.core.console import number_of, say
from hftune.core.errors import HftuneError
from hftune.data.arrow import column_array, picked
from hftune.data.load_rows import load_split
from hftune.data.same import column_keys
from hftune.data.section import DataSection
from hftune.data.select import is_text
from hftune.distillation.section import DistillationSection
from hftune.tasks.reader import read_more_rows, select_rows
from hftune.tasks.task import Task, blank_row

CLASSIFICATION = "text-classification"


def set_unlabelled_apart(
    section: DistillationSection | None,
    data: DataSection,
    task: Task,
    rows: Dataset,
    columns: dict[str, str],
) -> tuple[Dataset, Dataset | None]:
    """Return the rows with a label, and the selected rows without; None if there are no such rows.

    Without a teacher, all rows stay together.

    Args:
        section: The recipe's ``distillation``; None without a teacher.
        data: Gives the separator of labels.
        task: Selects the columns.
        rows: The rows before selection.
        columns: Role to column name.

    Raises:
        HftuneError: No row has a label, or a sampler would miss the rows without one.
    """
    if section is None or task.name != CLASSIFICATION:
        return rows, None
    missing = _missing(rows, columns["label"], data.label_separator)
    if not missing.any():
        return rows, None
    _check_missing(missing, columns["label"], section, data)
    known = {role: name for role, name in columns.items() if role != "label"}
    bare = select_rows(task, picked(rows, np.flatnonzero(missing)), known)
    return picked(rows, np.flatnonzero(~missing)), bare


def _check_missing(
    missing: NDArray[np.bool_], column: str, section: DistillationSection, data: DataSection
) -> None:
    """Raise if no row has a label, or if the rows without a label would have no effect."""
    if missing.all():
        raise HftuneError(
            f"column {column!r}: none of the {len(missing)} rows has a label",
            hint="a few are needed to judge the student by; rows without any go to data.unlabelled",
        )
    if data.sampling is not None or data.curriculum is not None:
        key = "sampling" if data.sampling is not None else "curriculum"
        raise HftuneError(
            f"data.{key}: it chooses among rows with labels, and "
            f"{number_of(int(missing.sum()), 'row has', 'rows have')} none"
        )
    if section.alpha == 0:
        raise HftuneError(
            f"distillation.alpha: with 0 nothing would teach the {missing.sum()} rows without label"
        )


def unlabelled_rows(
    data: DataSection, task: Task, bare: Dataset | None, validation: Dataset | None
) -> Dataset | None:
    """Return all rows without labels, except those with a text or group of the validation split.

    Args:
        data: May name further rows.
        task: Selects the columns.
        bare: The rows without labels from :func:`set_unlabelled_apart`.
        validation: Selected validation rows, if there are any.

    Raises:
        HftuneError: The rows are missing or broken.
    """
    if data.unlabelled is not None:
        given = load_split(data.unlabelled, "train")
        more = read_more_rows(task, given, data.columns, answers=False)
        bare = more if bare is None else _stacked(bare, more)
    if bare is None or validation is None:
        return bare
    held_out = np.zeros(len(bare), dtype=bool)
    texts = [name for name in ("text", "text_pair") if name in bare.column_names]
    if set(texts) <= set(validation.column_names):
        held_out |= np.isin(column_keys(bare, *texts), column_keys(validation, *texts))
    if "group" in bare.column_names and "group" in validation.column_names:
        groups = {str(group) for group in validation["group"] if group is not None}
        held_out |= [str(group) in groups for group in bare["group"]]
    if held_out.any():
        rows = number_of(int(held_out.sum()), "row", "rows")
        say(f"left out: {rows} without a label whose text or group is in the validation part")
    return picked(bare, np.flatnonzero(~held_out)) if not held_out.all() else None


def all_training_rows(labelled: Dataset, bare: Dataset | None) -> Dataset:
    """Return encoded rows with labels, followed by those without.

    Args:
        labelled: Preprocessed rows with labels.
        bare: Preprocessed rows without; they get the labels of a blank row.
    """
    if bare is None:
        return labelled
    blank = blank_row(labelled[0])["labels"]
    filled: Any = bare.add_column("labels", [blank] * len(bare))
    return concatenate_datasets([labelled, filled.cast(labelled.features)])


def _missing(rows: Dataset, name: str, separator: str | None) -> NDArray[np.bool_]:
    """Return the mask of empty cells in a label column; with a separator, empty text is no gap."""
    values = column_array(rows, name)
    if isinstance(rows.features[name], ClassLabel):
        values = pc.if_else(pc.greater_equal(values, 0), values, None)
    missing = pc.is_null(values, nan_is_null=True)
    if is_text(values.type) and separator is None:
        missing = pc.or_(missing, pc.fill_null(pc.equal(values, ""), fill_value=True))
    return np.asarray(missing.to_numpy(), dtype=bool)


def _stacked(first: Dataset, second: Dataset) -> Dataset:
    """Return the rows of both datasets, with their common columns."""
    names = [name for name in first.column_names if name in second.column_names]
    second = second.select_columns(names)
    return concatenate_datasets([first.select_columns(names).cast(second.features), second])
