# SPDX-License-Identifier: Apache-2.0
"""Rules of tasks and problem types that name the tasks or types they hold for."""

from hftune.core.rules import RecipeView, Rule
from hftune.core.task_rows import PROBLEM_TYPES, ProblemTypeRow
from hftune.data.section import DataSection
from hftune.models.section import ModelSection
from hftune.tasks import TASKS


def _problem_type(view: RecipeView) -> ProblemTypeRow | None:
    """Return the problem type that the recipe names; None if it names none."""
    return PROBLEM_TYPES.get(str(view[ModelSection].config.get("problem_type")))


def _has_numbers(view: RecipeView) -> bool:
    given = _problem_type(view)
    return given is not None and given.numbers


TASK_RULES = (
    Rule(
        "model.config.problem_type",
        f"it is one of {', '.join(PROBLEM_TYPES)}",
        lambda s: s[ModelSection].config.get("problem_type") not in (None, *PROBLEM_TYPES),
    ),
    Rule(
        "model.classifier_pooling",
        "only the head of "
        + " and ".join(name for name, row in TASKS.items() if row.label_kind == "class")
        + " pools",
        lambda s: s.task_row.label_kind != "class" and s[ModelSection].classifier_pooling != "cls",
    ),
    Rule(
        "data.label_separator",
        "it separates several labels; with this problem type a text has one",
        lambda s: (
            s[DataSection].label_separator is not None
            and (given := _problem_type(s)) is not None
            and not given.several
        ),
    ),
    Rule(
        "data.label_names",
        "regression has numbers, not labels",
        lambda s: bool(s[DataSection].label_names) and _has_numbers(s),
    ),
    Rule(
        "data.streaming",
        f"only {' and '.join(name for name, row in TASKS.items() if row.streamable)} can be "
        "streamed so far",
        lambda s: s[DataSection].streaming and not s.task_row.streamable,
    ),
    Rule(
        "data.streaming",
        "a stream is not read through for its labels: list them in data.label_names, or set "
        "model.config.problem_type: regression",
        lambda s: (
            s[DataSection].streaming
            and s.task_row.label_kind == "class"
            and not s[DataSection].label_names
            and not _has_numbers(s)
        ),
    ),
)
