# SPDX-License-Identifier: Apache-2.0
"""Labels of selected rows that a list of labels lacks, and messages about them."""

from collections.abc import Sequence, Set

from datasets import Dataset

from hftune.core.errors import HftuneError
from hftune.tasks.problem_types.problem_type import ProblemType

SHOWN_LABELS = 20


def check_listed(kind: ProblemType, rows: Dataset, column: str, names: Sequence[str]) -> None:
    """Raise :class:`HftuneError` if a row of a stream has a label that the recipe's list lacks.

    Args:
        kind: Reads the labels.
        rows: Selected rows.
        column: Name of the column of labels, for the message.
        names: The list.
    """
    if unknown := kind.occurring(rows) - set(names):
        row, label = first_with(unknown, rows)
        raise HftuneError(
            f"column {column!r}: row {row} has a label that data.label_names lacks: {label!r}",
            hint=f"labels: {shown(names)}",
        )


def first_with(labels: Set[str], rows: Dataset) -> tuple[int, str]:
    """Return the number of the first row that has one of the labels, and the label."""
    return next(
        (number, label)
        for number, cell in enumerate(rows["label"], start=1)
        for label in ([cell] if isinstance(cell, str) else cell)
        if label in labels
    )


def shown(labels: Sequence[str]) -> str:
    """Return labels for a message, the first of many."""
    more = f", ... ({len(labels)} in all)" if len(labels) > SHOWN_LABELS else ""
    return ", ".join(labels[:SHOWN_LABELS]) + more
