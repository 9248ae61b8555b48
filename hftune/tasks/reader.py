# SPDX-License-Identifier: Apache-2.0
"""The reader of rows: the only place that finds a task's columns and selects its rows.

Training, validation, evaluation, prediction, streams and guesses all come here. The first rows of a
run decide which column plays which role (:func:`read_rows`). Other rows of the run may lack columns
that the first ones have (:func:`read_more_rows`): they are looked for anew.
"""

from collections.abc import Mapping, Sequence

from datasets import Dataset

from hftune.tasks.task import Task


def choose_columns(task: Task, names: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Return role -> column.

    Args:
        task: Knows the roles.
        names: Columns of the rows.
        given: Role -> column, where the user names it.

    Raises:
        HftuneError: A named column is missing, or a required role has no column, or two.

    Example:
        >>> from hftune.tasks.text_classification import TextClassification
        >>> choose_columns(TextClassification(), ["body", "team"], {"label": "team"})["text"]
        'body'
    """
    return task.columns(names, given)


def select_rows(task: Task, rows: Dataset, columns: Mapping[str, str]) -> Dataset:
    """Return rows with one column a role, checked by the task.

    Args:
        task: Checks the cells.
        rows: As they were read from their source.
        columns: Role -> column.

    Raises:
        HftuneError: A cell does not suit the task; the message names the row.

    Example:
        >>> from hftune.tasks.text_classification import TextClassification
        >>> rows = Dataset.from_dict({"body": ["late again"], "page": [7]})
        >>> select_rows(TextClassification(), rows, {"text": "body"}).to_list()
        [{'text': 'late again'}]
    """
    return task.select(rows, columns)


def read_rows(
    task: Task, rows: Dataset, given: Mapping[str, str]
) -> tuple[Dataset, dict[str, str]]:
    """Return selected rows, and role -> column; see :func:`choose_columns` and :func:`select_rows`.

    Example:
        >>> from hftune.tasks.text_classification import TextClassification
        >>> rows = Dataset.from_dict({"body": ["late again"], "team": ["post"]})
        >>> selected, columns = read_rows(TextClassification(), rows, {"label": "team"})
        >>> columns["text"], selected["text"][:]
        ('body', ['late again'])
    """
    columns = choose_columns(task, rows.column_names, given)
    return select_rows(task, rows, columns), columns


def read_more_rows(
    task: Task, rows: Dataset, known: Mapping[str, str], *, answers: bool = True
) -> Dataset:
    """Return selected rows whose columns resemble those of a run.

    Args:
        task: Of the run.
        rows: As they were read from their source.
        known: Role -> column in the run; a column that these rows lack does not count, and its role
            is looked for anew.
        answers: Whether the rows need what the model predicts.

    Raises:
        HftuneError: A required role has no column, or a cell does not suit the task.

    Example:
        >>> from hftune.tasks.text_classification import TextClassification
        >>> rows = Dataset.from_dict({"message": ["late again"]})
        >>> known = {"text": "body", "label": "team"}
        >>> read_more_rows(TextClassification(), rows, known, answers=False).to_list()
        [{'text': 'late again'}]
    """
    present = {role: name for role, name in known.items() if name in rows.column_names}
    return task.select(rows, task.columns(rows.column_names, present, answers=answers))
