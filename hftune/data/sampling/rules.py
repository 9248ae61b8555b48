# SPDX-License-Identifier: Apache-2.0
"""Rules of the examples of an epoch: ``data.sampling`` and ``data.curriculum``."""

from typing import Any

from hftune.core.registry import SINGLE_LABEL
from hftune.core.rules import RecipeView, Rule, training
from hftune.core.sampling_rows import SamplingRow
from hftune.core.task_rows import PROBLEM_TYPES
from hftune.data.sampling import DIFFICULTIES, PACINGS, SAMPLINGS
from hftune.data.section import CurriculumChoice, DataSection, SamplingChoice
from hftune.models.section import ModelSection

BY_CLASS = ", ".join(name for name, row in SAMPLINGS.items() if row.by_class)
WEIGHTED = ", ".join(name for name, row in SAMPLINGS.items() if row.reads_column)
BY_COLUMN = ", ".join(name for name, row in DIFFICULTIES.items() if row.reads_column)
JUDGED = ", ".join(name for name, row in DIFFICULTIES.items() if row.needs_reference)
STAGED = ", ".join(name for name, row in PACINGS.items() if row.in_stages)
EQUAL_ALREADY = "data.sampling makes the classes equally common already"


def _sampling(view: RecipeView) -> SamplingRow | None:
    """Facts about ``data.sampling``."""
    choice = view[DataSection].sampling
    return SAMPLINGS[choice.name] if isinstance(choice, SamplingChoice) else None


def _difficulty(view: RecipeView) -> SamplingRow | None:
    """Facts about ``data.curriculum``."""
    choice = view[DataSection].curriculum
    return DIFFICULTIES[choice.name] if isinstance(choice, CurriculumChoice) else None


def _in_stages(view: RecipeView) -> bool:
    pacing = _curriculum(view, "pacing")
    return pacing is not None and PACINGS[pacing].in_stages


def _draws(view: RecipeView) -> bool:
    return view[DataSection].sampling is not None or view[DataSection].curriculum is not None


def _column(view: RecipeView, key: str) -> str | None:
    choice = getattr(view[DataSection], key)
    return None if choice is None else choice.column


def _curriculum(view: RecipeView, option: str) -> Any:
    choice = view[DataSection].curriculum
    return None if choice is None else getattr(choice, option)


def _by_metric(view: RecipeView) -> bool:
    return bool(_curriculum(view, "advance") == "plateau")


def _has_sources(view: RecipeView) -> bool:
    path = view[DataSection].path
    return isinstance(path, list) and not all(isinstance(item, str) for item in path)


def _by_class(view: RecipeView) -> bool:
    row = _sampling(view)
    return row is not None and row.by_class


def _has_classes(view: RecipeView) -> bool:
    """Tell whether each row has one class, as far as the recipe says."""
    given = PROBLEM_TYPES.get(view[ModelSection].config.get("problem_type", SINGLE_LABEL))
    return view.task_row.label_kind == "class" and given is not None and given.one_class


def _loss(view: RecipeView, name: str) -> Any:
    return None if view.loss is None else view.loss.options.get(name)


SAMPLING_RULES = (
    Rule(
        "data.sampling",
        f"{BY_CLASS} go by the class of a row, and these rows have no single class",
        lambda s: _by_class(s) and not _has_classes(s),
    ),
    Rule(
        "data.sampling",
        f"{WEIGHTED} needs the column of the weights: {{name: {WEIGHTED}, column: ...}}",
        lambda s: (
            (row := _sampling(s)) is not None
            and row.reads_column
            and _column(s, "sampling") is None
        ),
    ),
    Rule(
        "data.sampling.column",
        f"only {WEIGHTED} reads a column",
        lambda s: _by_class(s) and _column(s, "sampling") is not None,
    ),
    Rule(
        "data.curriculum",
        f"{BY_COLUMN} needs to be told which: {{name: {BY_COLUMN}, column: ...}}",
        lambda s: (
            (row := _difficulty(s)) is not None
            and row.reads_column
            and _column(s, "curriculum") is None
        ),
    ),
    Rule(
        "data.curriculum.column",
        f"it is read by name: {BY_COLUMN}",
        lambda s: (
            (row := _difficulty(s)) is not None
            and not row.reads_column
            and _column(s, "curriculum") is not None
        ),
    ),
    Rule(
        "data.curriculum.model",
        f"it judges the rows of name: {JUDGED}",
        lambda s: (
            (row := _difficulty(s)) is not None
            and not row.needs_reference
            and _curriculum(s, "model") is not None
        ),
    ),
    Rule(
        "data.curriculum",
        f"{JUDGED} needs a model that knows the labels, which a new head does not: a finished "
        f"run, as in {{name: {JUDGED}, model: runs/first}}",
        lambda s: (
            (row := _difficulty(s)) is not None
            and row.needs_reference
            and _curriculum(s, "model") is None
            and not s.task_row.writes
        ),
    ),
    Rule(
        "data.curriculum.advance",
        f"plateau goes from stage to stage: set pacing: {STAGED}",
        lambda s: _by_metric(s) and not _in_stages(s),
    ),
    Rule(
        "data.curriculum.advance",
        "plateau follows the metric of the evaluations: set training.eval_strategy and "
        "data.validation",
        lambda s: (
            _by_metric(s)
            and (training(s, "eval_strategy") in ("no", False) or not s[DataSection].has_validation)
        ),
    ),
    Rule(
        "data.curriculum.duration",
        "with advance: plateau the metric decides how long a stage lasts",
        lambda s: _by_metric(s) and _curriculum(s, "duration") is not None,
    ),
    Rule(
        "data.curriculum.patience",
        "it is that of advance: plateau",
        lambda s: _curriculum(s, "patience") is not None and not _by_metric(s),
    ),
    Rule(
        "data.curriculum.stages",
        f"they are those of pacing: {STAGED}",
        lambda s: _curriculum(s, "stages") is not None and not _in_stages(s),
    ),
    Rule(
        "data.curriculum.start",
        f"pacing: {STAGED} starts with its first stage",
        lambda s: _curriculum(s, "start") is not None and _in_stages(s),
    ),
    Rule(
        "data.curriculum",
        "it chooses the rows of each step, and so does data.sampling: take one of them",
        lambda s: s[DataSection].sampling is not None and s[DataSection].curriculum is not None,
    ),
    Rule(
        "data.streaming",
        "data.sampling and data.curriculum choose from all rows, which a stream does not know",
        lambda s: s[DataSection].streaming and _draws(s),
    ),
    Rule(
        "data.path",
        "sources have weights of their own; a column of data.sampling or data.curriculum is read "
        "from files of one kind",
        lambda s: (
            _has_sources(s)
            and (_column(s, "sampling") is not None or _column(s, "curriculum") is not None)
        ),
    ),
    Rule(
        "training.train_sampling_strategy",
        "sequential keeps the order of the rows, and data.sampling draws them",
        lambda s: (
            s[DataSection].sampling is not None
            and training(s, "train_sampling_strategy") == "sequential"
        ),
    ),
    Rule(
        "training.train_sampling_strategy",
        "data.curriculum decides the order: leave it at random",
        lambda s: (
            s[DataSection].curriculum is not None
            and training(s, "train_sampling_strategy", "random") != "random"
        ),
    ),
    Rule(
        "loss.class_weights",
        f"{EQUAL_ALREADY}: balanced, inverse and effective_number count the rows that are drawn "
        "and would weigh all alike; leave one of the two out, or give the weights as numbers",
        lambda s: _by_class(s) and isinstance(_loss(s, "class_weights"), str),
    ),
    Rule(
        "loss.logit_adjustment",
        EQUAL_ALREADY,
        lambda s: _by_class(s) and _loss(s, "logit_adjustment") is not None,
    ),
    Rule(
        "data.sampling",
        "a probe sees each row once; its weights are method.balance",
        lambda s: s.method_row.fitted and s[DataSection].sampling is not None,
    ),
    Rule(
        "data.curriculum",
        "a probe is fitted on all rows at once",
        lambda s: s.method_row.fitted and s[DataSection].curriculum is not None,
    ),
)
