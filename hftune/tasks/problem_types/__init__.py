# SPDX-License-Identifier: Apache-2.0
"""The three kinds of labels of ``text-classification``: one of many, any of many, a number.

Their names are those of ``config.problem_type``.
"""

import ast

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from hftune.core.errors import HftuneError
from hftune.core.registry import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from hftune.core.task_rows import PROBLEM_TYPES
from hftune.data.arrow import column_array
from hftune.tasks.problem_types.problem_type import ProblemType, as_number


def problem_type_of(
    rows: Dataset, column: str, separator: str | None, *, named: bool = False
) -> str:
    """Guess the problem type from a label column.

    Lists, also written as text, or a separator, mean several labels; numbers of which one has a
    fraction mean regression; all else is one label a text.

    Args:
        rows: Have the column.
        column: Its name.
        separator: What stands between several labels of one cell.
        named: Whether the labels have names, so that numbers are names.

    Raises:
        HftuneError: Most labels are numbers, with fractions, and a few are not.
    """
    values = column_array(rows, column)
    if separator is not None or pa.types.is_nested(values.type):
        return MULTI_LABEL
    if isinstance(rows.features[column], ClassLabel):
        return SINGLE_LABEL
    distinct = pc.unique(pc.drop_null(values)).to_pylist()
    if any(map(_is_list, distinct)):
        return MULTI_LABEL
    others = [value for value in distinct if as_number(value) is None and value != ""]
    fractions = any((as_number(value) or 0) % 1 for value in distinct)
    if named or not fractions or 2 * len(others) >= len(distinct):
        return SINGLE_LABEL
    if others:
        row = pc.index(values, others[0]).as_py() + 1
        raise HftuneError(
            f"column {column!r}: row {row} is no finite number: {others[0]!r:.60}, and others are",
            hint="say what they are: model.config.problem_type: single_label_classification for "
            "classes, or regression, which every row needs a number for",
        )
    return REGRESSION


def _is_list(cell: object) -> bool:
    """Whether a text is a list, as JSON or Python writes it."""
    if not isinstance(cell, str) or not (cell.startswith("[") and cell.endswith("]")):
        return False
    try:
        return isinstance(ast.literal_eval(cell), list)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def make_problem_type(name: str, separator: str | None = None) -> ProblemType:
    """Return the problem type of a name.

    Args:
        name: Value of ``config.problem_type``.
        separator: Text between several labels of one cell.
    """
    row = PROBLEM_TYPES[name]
    made: ProblemType = row.resolve()(separator) if row.several else row.resolve()()
    return made
