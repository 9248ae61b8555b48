# SPDX-License-Identifier: Apache-2.0
"""Build the objective of a run: task, method, loss and teachers, from their names in a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

from hftune.core.errors import RecipeError
from hftune.core.registry import Choice
from hftune.distillation.checks import labels_of_teacher
from hftune.distillation.distillation_loss import Distillation
from hftune.distillation.teachers import NamedTeacher
from hftune.evaluation.external import Metric
from hftune.losses import LOSSES
from hftune.losses.loss import LabelStats, Loss
from hftune.methods import make_method
from hftune.methods.method import Method
from hftune.recipe.recipe import Recipe
from hftune.regularization.adversarial import Adversarial
from hftune.tasks import TASKS
from hftune.tasks.task import Task
from hftune.training.plan.choose_sampler import drawn_counts
from hftune.training.plan.pretrained import Pretrained
from hftune.training.plan.settings import Settings
from hftune.training.plan.splits import Splits


@dataclass(frozen=True)
class Objective:
    """The objective of a run: task, method, loss and teachers.

    Attributes:
        task: The task, with its label names.
        method: Decides the trained weights.
        loss: The loss, fitted to the training rows.
        loss_choice: Name and options of the loss; None for the user's own loss.
        teachers: Teachers without weights.
        meta_model: The model without weights after the method's changes; None if the method needs
            the weights for them.
    """

    task: Task
    method: Method
    loss: Loss
    loss_choice: Choice | None = None
    teachers: Sequence[NamedTeacher] = ()
    meta_model: nn.Module | None = None


def build_task(recipe: Recipe, teachers: Sequence[NamedTeacher] = ()) -> Task:
    """Return the recipe's task with its options.

    Args:
        recipe: Names the task and its options.
        teachers: The first teacher gives the labels if the recipe does not list them.
    """
    row = TASKS[recipe.task]
    given = {key.rpartition(".")[2]: recipe.value(key) for key in row.keys}
    options = {name: value for name, value in given.items() if value is not None}
    known = labels_of_teacher(row.resolve(), teachers)
    options |= {name: options.get(name) or value for name, value in known.items()}
    task: Task = row.resolve()(**options)
    return task


def resolve_metrics(recipe: Recipe, task: Task, given: Sequence[Metric] | None) -> None:
    """Add the requested metrics of other libraries to a task.

    Raises:
        RecipeError: Only the recipe asks for them; the user must trust their scripts first.
    """
    if given is None and recipe.evaluation.metrics:
        raise RecipeError(
            ["evaluation.metrics: metrics by name or path are scripts that run on this machine"],
            hint="trust them with --trust-metrics, or in Python with metrics=[...]",
        )
    task.add_metrics(given or ())


def choose_loss(recipe: Recipe, task: Task) -> Choice:
    """Return the recipe's loss, or the task's default.

    Raises:
        RecipeError: The loss does not suit the labels.
    """
    choice = recipe.loss or Choice(name=task.default_loss)
    fits = LOSSES[choice.name].problem_types
    if task.problem_type is not None and task.problem_type not in fits:
        raise RecipeError(
            [f"loss: {choice.name} goes with {', '.join(fits)}, but this is {task.problem_type}"],
            hint=f"take {task.default_loss}, or set model.config.problem_type",
        )
    return choice


def choose_objective(
    settings: Settings,
    pretrained: Pretrained,
    splits: Splits,
    task: Task,
    *,
    loss: Loss | Choice,
    teachers: Sequence[NamedTeacher] = (),
) -> Objective:
    """Build method and loss, and fit the loss to the training rows.

    Args:
        settings: The recipe names method and loss.
        pretrained: Its tokenizer gives the classes of a language model.
        splits: The training rows.
        task: Knows the labels.
        loss: The user's own loss, or the chosen one.
        teachers: Teachers without weights.

    Raises:
        HftuneError: The loss does not fit the labels.
    """
    recipe = settings.recipe
    made = _build_loss(loss) if isinstance(loss, Choice) else loss
    objective = Objective(
        task=task,
        method=make_method(recipe.method.name, recipe.method.options),
        loss=_with_companion(recipe, made),
        loss_choice=loss if isinstance(loss, Choice) else None,
        teachers=teachers,
    )
    _fit_loss(objective, settings, pretrained, splits)
    return objective


def num_classes(task: Task, config: PreTrainedConfig) -> int:
    """Return the number of classes of a model's head."""
    named = task.unnamed_outputs or len(task.label_names)
    return named or int(config.get_text_config().vocab_size)


def _build_loss(choice: Choice) -> Loss:
    loss: Loss = LOSSES[choice.name].resolve()(**choice.options)
    return loss


def _with_companion(recipe: Recipe, loss: Loss) -> Loss:
    """Return the loss, wrapped for distillation or adversarial training by the recipe."""
    if (epsilon := recipe.regularization.adversarial) is not None:
        return Adversarial(loss, epsilon)
    return loss if recipe.distillation is None else Distillation(loss, recipe.distillation)


def _fit_loss(
    objective: Objective, settings: Settings, pretrained: Pretrained, splits: Splits
) -> None:
    """Fit the loss to the labels, and pass the class shares that it learns to the task."""
    task, loss = objective.task, objective.loss
    classes = num_classes(task, pretrained.config)
    counts = drawn_counts(
        splits.row_sampler, task, splits.examples.train, splits.class_counts(task, classes)
    )
    loss.fit(
        LabelStats(
            classes=task.classes(pretrained.processor, classes),
            counts=counts.tolist(),
            rows=splits.train.num_rows,
            label_smoothing=settings.arguments.label_smoothing_factor,
            causal=task.causal,
            listed=bool(settings.recipe.data.label_names),
            problem_type=task.problem_type,
        )
    )
    shares = loss.prior()
    task.learn_prior(None if shares is None else shares.tolist())
