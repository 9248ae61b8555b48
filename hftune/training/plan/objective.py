# SPDX-License-Identifier: Apache-2.0
"""From the names in a recipe to the objects that they stand for."""

from collections.abc import Sequence

from transformers import TrainingArguments

from hftune.core.errors import RecipeError
from hftune.core.registry import Choice
from hftune.core.suggest import did_you_mean
from hftune.distillation.checks import labels_of_teacher
from hftune.distillation.teachers import NamedTeacher
from hftune.evaluation import METRICS
from hftune.evaluation.external import Metric
from hftune.losses import LOSSES
from hftune.losses.loss import Loss
from hftune.methods import make_method
from hftune.methods.method import Method
from hftune.recipe.recipe import Recipe
from hftune.tasks import TASKS
from hftune.tasks.task import Task


def build_task(recipe: Recipe, teachers: Sequence[NamedTeacher] = ()) -> Task:
    """Return the recipe's task with the options that it takes.

    Args:
        recipe: Names it and its options.
        teachers: The first of them knows the labels, where the recipe does not say them.
    """
    row = TASKS[recipe.task]
    given = {key.rpartition(".")[2]: recipe.value(key) for key in row.keys}
    options = {name: value for name, value in given.items() if value is not None}
    known = labels_of_teacher(row.resolve(), teachers)
    options |= {name: options.get(name) or value for name, value in known.items()}
    task: Task = row.resolve()(**options)
    return task


def resolve_metrics(recipe: Recipe, task: Task, given: Sequence[Metric] | None) -> None:
    """Load the metrics of other libraries that were asked for.

    Raises:
        RecipeError: Only the recipe asks for them, and their scripts would run here.
    """
    if given is None and recipe.evaluation.metrics:
        raise RecipeError(
            ["evaluation.metrics: metrics by name or path are scripts that run on this machine"],
            hint="trust them with --trust-metrics, or in Python with metrics=[...]",
        )
    task.add_metrics(given or ())


def resolve_best_metric(recipe: Recipe, arguments: TrainingArguments, task: Task) -> None:
    """Check what the best model is chosen by, or let the task choose."""
    given = recipe.training.get("metric_for_best_model")
    metric = str(given or task.best_metric).removeprefix("eval_")
    external = [other.name for other in task.external_metrics if metric.startswith(other.name)]
    if external and "greater_is_better" not in recipe.training:
        raise RecipeError(
            [f"training.greater_is_better: say whether a higher {metric} is better: true or false"]
        )
    if metric not in task.metric_names and not external:
        near = did_you_mean(metric, task.metric_names)
        raise RecipeError(
            [f"training.metric_for_best_model: unknown metric {given!r}{near}"],
            hint=f"metrics: {', '.join(task.metric_names)}",
        )
    higher = recipe.training.get("greater_is_better")
    known = None if external else METRICS[metric].higher_is_better
    if None not in (higher, known) and higher != known:
        raise RecipeError(
            [f"training.greater_is_better: the {'higher' if known else 'lower'} the {metric}, the "
             "better; leave it out"]
        )  # fmt: skip
    if arguments.metric_for_best_model is not None:
        arguments.metric_for_best_model = metric
        arguments.greater_is_better = known if higher is None else higher


def loss_choice_of(recipe: Recipe, task: Task) -> Choice:
    """Return the recipe's loss, or the task's own.

    Raises:
        RecipeError: It does not go with the labels.
    """
    choice = recipe.loss or Choice(name=task.default_loss)
    fits = LOSSES[choice.name].problem_types
    if task.problem_type is not None and task.problem_type not in fits:
        raise RecipeError(
            [f"loss: {choice.name} goes with {', '.join(fits)}, but this is {task.problem_type}"],
            hint=f"take {task.default_loss}, or set model.config.problem_type",
        )
    return choice


def build_loss(choice: Choice | None) -> Loss:
    """Return the loss that the recipe names."""
    assert choice is not None
    loss: Loss = LOSSES[choice.name].resolve()(**choice.options)
    return loss


def build_method(recipe: Recipe) -> Method:
    """Return the method that the recipe names."""
    return make_method(recipe.method.name, recipe.method.options)
