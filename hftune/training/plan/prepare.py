# SPDX-License-Identifier: Apache-2.0
"""Prepare a recipe: turn it into a checked plan, before any weights are loaded."""

from collections.abc import Sequence

from datasets import Dataset
from torch import nn

from hftune.distillation.checks import check_labels, check_rows
from hftune.distillation.teachers import NamedTeacher, find_teachers
from hftune.evaluation.external import Metric
from hftune.losses.loss import Loss
from hftune.recipe.recipe import Recipe
from hftune.tasks import TASKS
from hftune.tasks.task import Task
from hftune.training.plan.check_plan import checked
from hftune.training.plan.examples import Examples
from hftune.training.plan.objective import (
    build_task,
    choose_loss,
    choose_objective,
    resolve_metrics,
)
from hftune.training.plan.plan import Plan
from hftune.training.plan.pretrained import find_pretrained
from hftune.training.plan.settings import resolve_settings
from hftune.training.plan.splits import build_splits, open_examples


def prepare(
    recipe: Recipe,
    *,
    train_dataset: Dataset | None = None,
    eval_dataset: Dataset | None = None,
    loss: Loss | None = None,
    metrics: Sequence[Metric] | None = None,
    own_model: nn.Module | None = None,
    sample: int | None = None,
) -> Plan:
    """Turn a recipe into a :class:`Plan`.

    Args:
        recipe: The recipe.
        train_dataset: Rows in place of ``data.path``.
        eval_dataset: Rows in place of ``data.validation``.
        loss: The user's own loss, which replaces the recipe's.
        metrics: Metrics of the ``evaluate`` library in place of ``evaluation.metrics``.
        own_model: The user's own model, which replaces the recipe's model and method.
        sample: Rows of a large split to preprocess, for a check without training; None for all.

    Raises:
        HftuneError: Something in the recipe, the data or the environment does not fit.
    """
    settings = resolve_settings(recipe, own_model is not None)
    teachers = find_teachers(recipe.distillation, TASKS[recipe.task].resolve())
    task = build_task(recipe, teachers)
    pretrained = find_pretrained(settings, task)
    examples = open_examples(recipe, task, train_dataset, eval_dataset)
    _learn_labels(recipe, task, examples, teachers)
    resolve_metrics(recipe, task, metrics)
    settings = settings.with_best_metric(task)
    chosen = choose_loss(recipe, task) if loss is None else loss
    pretrained = pretrained.configured(settings, task)
    splits = build_splits(settings, pretrained, task, examples, own_model=own_model, sample=sample)
    objective = choose_objective(settings, pretrained, splits, task, loss=chosen, teachers=teachers)
    return checked(Plan(settings, pretrained, splits, objective), own_model)


def _learn_labels(
    recipe: Recipe, task: Task, examples: Examples, teachers: Sequence[NamedTeacher]
) -> None:
    """Fit the task's labels to the rows, and check that teachers have the same labels."""
    check_rows(task, examples.train, teachers, recipe.data)
    task.fit_labels(examples.train, examples.validation)
    check_labels(task, teachers, recipe.data)
