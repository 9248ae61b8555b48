# SPDX-License-Identifier: Apache-2.0
"""Rules of what draws the rows of an epoch: ``data.sampling`` and ``data.curriculum``."""

from typing import Any

from hftune.core.registry import SINGLE_LABEL
from hftune.core.rules import RecipeView, Rule, training
from hftune.core.task_rows import PROBLEM_TYPES
from hftune.data.section import DataSection
from hftune.models.section import ModelSection

#: Samplings that make all classes equally common.
BY_CLASS = ("balanced", "oversample", "undersample")
EQUAL_ALREADY = "data.sampling makes the classes equally common already"


def _chosen(view: RecipeView, key: str) -> str | None:
    """The name under ``data.sampling`` or ``data.curriculum``."""
    choice = getattr(view[DataSection], key)
    return None if choice is None else choice.name


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
    return _chosen(view, "sampling") in BY_CLASS


def _has_classes(view: RecipeView) -> bool:
    """Tell whether each row has one class, as far as the recipe says."""
    given = PROBLEM_TYPES.get(view[ModelSection].config.get("problem_type", SINGLE_LABEL))
    return view.task_row.label_kind == "class" and given is not None and given.one_class


def _loss(view: RecipeView, name: str) -> Any:
    return None if view.loss is None else view.loss.options.get(name)


SAMPLING_RULES = (
    Rule(
        "data.sampling",
        f"{', '.join(BY_CLASS)} go by the class of a row, and these rows have no single class",
        lambda s: _by_class(s) and not _has_classes(s),
    ),
    Rule(
        "data.sampling",
        "weighted needs the column of the weights: {name: weighted, column: ...}",
        lambda s: _chosen(s, "sampling") == "weighted" and _column(s, "sampling") is None,
    ),
    Rule(
        "data.sampling.column",
        "only weighted reads a column",
        lambda s: _by_class(s) and _column(s, "sampling") is not None,
    ),
    Rule(
        "data.curriculum",
        "column needs to be told which: {name: column, column: ...}",
        lambda s: _chosen(s, "curriculum") == "column" and _column(s, "curriculum") is None,
    ),
    Rule(
        "data.curriculum.column",
        "it is read by name: column",
        lambda s: (
            _chosen(s, "curriculum") in ("length", "rarity", "loss")
            and _column(s, "curriculum") is not None
        ),
    ),
    Rule(
        "data.curriculum.model",
        "it judges the rows of name: loss",
        lambda s: (
            _chosen(s, "curriculum") not in (None, "loss") and _curriculum(s, "model") is not None
        ),
    ),
    Rule(
        "data.curriculum",
        "loss needs a model that knows the labels, which a new head does not: a finished run, as "
        "in {name: loss, model: runs/first}",
        lambda s: (
            _chosen(s, "curriculum") == "loss"
            and _curriculum(s, "model") is None
            and not s.task_row.writes
        ),
    ),
    Rule(
        "data.curriculum.advance",
        "plateau goes from stage to stage: set pacing: staged",
        lambda s: _by_metric(s) and _curriculum(s, "pacing") != "staged",
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
        "they are those of pacing: staged",
        lambda s: _curriculum(s, "stages") is not None and _curriculum(s, "pacing") != "staged",
    ),
    Rule(
        "data.curriculum.start",
        "pacing: staged starts with its first stage",
        lambda s: _curriculum(s, "start") is not None and _curriculum(s, "pacing") == "staged",
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
