# SPDX-License-Identifier: Apache-2.0
"""The three kinds of labels of ``text-classification``: one of many, any of many, a number.

Their names are those of ``config.problem_type``.
"""

from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel

from hftune.tasks.problem_types.contract import ProblemType, as_number
from hftune.tasks.problem_types.multi_label import MultiLabel
from hftune.tasks.problem_types.regression import Regression
from hftune.tasks.problem_types.single_label import SingleLabel


def problem_type_of(values: Sequence[Any], feature: Any, separator: str | None) -> str:
    """Guess the problem type from a label column.

    Lists, or a separator, mean several labels; numbers of which one has a fraction mean regression;
    all else is one label a text.
    """
    present = [value for value in values if value is not None]
    if separator is not None or any(isinstance(value, list) for value in present):
        return "multi_label_classification"
    if isinstance(feature, ClassLabel):
        return "single_label_classification"
    fractions = False
    for value in present:
        number = as_number(value)
        if number is None:
            return "single_label_classification"
        fractions = fractions or number % 1 != 0
    return "regression" if fractions else "single_label_classification"


def make_problem_type(name: str, separator: str | None) -> ProblemType:
    """Return the problem type of that name."""
    if name == "multi_label_classification":
        return MultiLabel(separator)
    return Regression() if name == "regression" else SingleLabel()
