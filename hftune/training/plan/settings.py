# SPDX-License-Identifier: Apache-2.0
"""Resolve the settings of a run: launcher, ``TrainingArguments``, optimization, regularization."""

from dataclasses import dataclass, replace
from typing import Any

from transformers import TrainingArguments

from hftune.core.errors import RecipeError
from hftune.core.suggest import did_you_mean
from hftune.evaluation import METRICS
from hftune.methods import make_method
from hftune.recipe.recipe import Recipe
from hftune.regularization.regularizers import Regularization
from hftune.tasks.task import Task
from hftune.training.distributed.launch_rules import check_launch
from hftune.training.distributed.launcher import Launch
from hftune.training.plan.arguments import for_device, training_arguments, with_fields
from hftune.training.plan.optimization import Optimization, scaled_rate


@dataclass(frozen=True)
class Settings:
    """The settings of a run.

    Attributes:
        recipe: The recipe, with its method's defaults for the device.
        launch: The launcher's settings.
        arguments: The Trainer's arguments. They never change; see :meth:`with_arguments`.
        optimization: Optimizer, schedule, clipping and average.
        regularization: Dropout of every kind, noise, and sharpness-aware steps.
    """

    recipe: Recipe
    launch: Launch
    arguments: TrainingArguments
    optimization: Optimization
    regularization: Regularization

    def with_arguments(self, **fields: object) -> "Settings":
        """Return the settings with other values in some fields of the arguments."""
        return replace(self, arguments=with_fields(self.arguments, **fields))

    def with_best_metric(self, task: Task) -> "Settings":
        """Return the settings with the metric that selects the best model.

        Args:
            task: Lists its metrics, and has a default.

        Raises:
            RecipeError: There is no such metric, or it is unknown whether higher is better.
        """
        metric, higher_is_better = _best_metric(self.recipe.training, task)
        if self.arguments.metric_for_best_model is None:
            return self
        return self.with_arguments(metric_for_best_model=metric, greater_is_better=higher_is_better)


def resolve_settings(recipe: Recipe, own_model: bool = False) -> Settings:
    """Resolve the settings of a run, with all fields of ``TrainingArguments``.

    Args:
        recipe: The recipe.
        own_model: Whether the user's own model replaces the recipe's model and method.

    Raises:
        RecipeError: Recipe, launcher and machine do not fit together.
    """
    launch = check_launch(recipe, own_model)
    recipe = for_device(recipe, launch)
    arguments = training_arguments(recipe, launch)
    arguments.learning_rate = scaled_rate(recipe, arguments)
    method = make_method(recipe.method.name, recipe.method.options)
    if method.changes_what_trains and arguments.ddp_find_unused_parameters is None:
        arguments.ddp_find_unused_parameters = True  # also where activations are recomputed
    return Settings(
        recipe=recipe,
        launch=launch,
        arguments=arguments,
        optimization=Optimization.of(recipe, arguments),
        regularization=Regularization(recipe.regularization, arguments.seed),
    )


def _best_metric(training: dict[str, Any], task: Task) -> tuple[str, bool | None]:
    """Return the metric that selects the best model, and whether higher values are better."""
    given, higher = training.get("metric_for_best_model"), training.get("greater_is_better")
    metric = str(given or task.best_metric).removeprefix("eval_")
    external = [other.name for other in task.external_metrics if metric.startswith(other.name)]
    if external and "greater_is_better" not in training:
        raise RecipeError(
            [f"training.greater_is_better: say whether a higher {metric} is better: true or false"]
        )
    if metric not in task.metric_names and not external:
        near = did_you_mean(metric, task.metric_names)
        raise RecipeError(
            [f"training.metric_for_best_model: unknown metric {given!r}{near}"],
            hint=f"metrics: {', '.join(task.metric_names)}",
        )
    known = None if external else METRICS[metric].higher_is_better
    if None not in (higher, known) and higher != known:
        raise RecipeError(
            [f"training.greater_is_better: the {'higher' if known else 'lower'} the {metric}, the "
             "better; leave it out"]
        )  # fmt: skip
    return metric, known if higher is None else higher
