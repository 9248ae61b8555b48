# SPDX-License-Identifier: Apache-2.0
"""The three kinds of labels of ``text-classification``: one of many, any of many, a number.

Their names are those of ``config.problem_type``.
"""

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from hftune.data.arrow import column_array
from hftune.tasks.problem_types.contract import ProblemType, as_number
from hftune.tasks.problem_types.multi_label import MultiLabel
from hftune.tasks.problem_types.regression import Regression
from hftune.tasks.problem_types.single_label import SingleLabel

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"


def problem_type_of(rows: Dataset, column: str, separator: str | None) -> str:
    """Guess the problem type from a label column.

    Lists, or a separator, mean several labels; numbers of which one has a fraction mean regression;
    all else is one label a text.
    """
    values = column_array(rows, column)
    if separator is not None or pa.types.is_nested(values.type):
        return MULTI_LABEL
    if isinstance(rows.features[column], ClassLabel):
        return SINGLE_LABEL
    fractions = False
    for value in pc.unique(pc.drop_null(values)).to_pylist():
        number = as_number(value)
        if number is None:
            return SINGLE_LABEL
        fractions = fractions or number % 1 != 0
    return REGRESSION if fractions else SINGLE_LABEL


def make_problem_type(name: str, separator: str | None) -> ProblemType:
    """Return the problem type of that name."""
    if name == MULTI_LABEL:
        return MultiLabel(separator)
    return Regression() if name == REGRESSION else SingleLabel()
