# SPDX-License-Identifier: Apache-2.0
"""Collect optimizer, parameter groups, schedule and average of a run, without any weights."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from hftune.core.console import say
from hftune.core.cost import StepCost
from hftune.core.errors import RecipeError, first_line
from hftune.core.optimization_rows import ScheduleRow
from hftune.core.registry import named
from hftune.core.steps import resolve_steps
from hftune.optimization.make_optimizer import (
    ClassAndOptions,
    OptimizerChoice,
    class_and_options,
    kind_and_options,
)
from hftune.optimization.make_schedule import idle_optimizer, make_factor, make_schedule
from hftune.optimization.metric_schedules import WarmupForMetricSchedules
from hftune.optimization.parameter_groups import Grouping, check_groups
from hftune.optimization.schedule_factors import TrainingSteps
from hftune.optimization.schedules import SCHEDULES
from hftune.recipe.recipe import Recipe
from hftune.regularization import AVERAGES, REGULARIZATIONS
from hftune.regularization.penalties import WeightPenalty
from hftune.regularization.section import WeightAveraging
from hftune.regularization.weight_averaging import (
    Averaging,
    EndInEvaluation,
    OptimizerAverage,
    WeightAverage,
)
from hftune.training.callbacks.gradients import GradientLog, GradientValueClipping

#: A rate below this share of the highest has no visible effect.
DEAD_RATE = 1e-3
#: The rate may be so low after this share of the run.
FINISH = 0.9


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """Optimizer, schedule, clipping and average of one run.

    Attributes:
        optimizer: Name, options and parameter groups of the optimizer.
        schedule: ``training.lr_scheduler_type``.
        schedule_kwargs: ``training.lr_scheduler_kwargs``.
        averaging: ``regularization.weight_averaging``.
        penalties: The penalties of ``regularization``, by name.
        max_grad_value: ``training.max_grad_value``.
        log_grad_norms: ``training.log_grad_norms``.
    """

    optimizer: OptimizerChoice
    schedule: str
    schedule_kwargs: Mapping[str, Any]
    averaging: WeightAveraging | None = None
    penalties: Mapping[str, float] = field(default_factory=dict)
    max_grad_value: float | None = None
    log_grad_norms: str | None = None

    @classmethod
    def of(cls, recipe: Recipe, arguments: TrainingArguments) -> "Optimization":
        """Build the optimization of a recipe."""
        given = recipe.training
        loraplus = {key: given[key] for key in ("loraplus_lr_ratio", "loraplus_lr_embedding")
                    if given.get(key) is not None}  # fmt: skip
        grouping = Grouping(
            param_groups=tuple(given.get("param_groups") or ()),
            layer_decay=given.get("layer_decay"),
        )
        return cls(
            optimizer=OptimizerChoice(
                name=str(_plain(arguments.optim)),
                args=arguments.optim_args,
                grouping=grouping,
                loraplus=loraplus,
            ),
            schedule=str(_plain(arguments.lr_scheduler_type)),
            schedule_kwargs=given.get("lr_scheduler_kwargs") or {},
            averaging=recipe.regularization.weight_averaging,  # type: ignore[arg-type]
            penalties=recipe.regularization.penalties,
            max_grad_value=given.get("max_grad_value"),
            log_grad_norms=given.get("log_grad_norms"),
        )

    @property
    def computes_again(self) -> bool:
        """Whether a step of the optimizer computes the loss of its batch again."""
        return self.optimizer.row.closure

    @property
    def schedule_row(self) -> ScheduleRow:
        """The row of the schedule in the registry."""
        return SCHEDULES[self.schedule]

    def step_cost(self) -> StepCost:
        """Return the cost of the optimizer's state, of the average, and of the penalties.

        A penalty's gradient exists before that of the loss, together with the activations.
        """
        kept = [REGULARIZATIONS[key] for key in self.penalties]
        if self.averaging is not None:
            kept.append(REGULARIZATIONS["weight_averaging"])
        copies = sum(row.state_copies for row in kept) + bool(self.penalties)
        return StepCost(
            bytes_per_weight=self.optimizer.state_bytes + copies * torch.float32.itemsize,
            gradient_copies=-1 if self.optimizer.row.in_backward else 0,
        )

    def class_and_options(
        self,
        arguments: TrainingArguments,
        model: nn.Module,
        decayed: Collection[str],
        total: int,
    ) -> ClassAndOptions | None:
        """Return the optimizer class and its arguments; None if the Trainer can create it itself.

        Args:
            arguments: The Trainer's, with rates, betas and weight decay.
            model: The model; trained parameters have ``requires_grad``.
            decayed: Names of the parameters with weight decay.
            total: Optimizer steps of the run.
        """
        if self.optimizer.is_plain and not self.optimizer.row.own_schedule:
            return None
        kind, options = class_and_options(self.optimizer, arguments, model, decayed)
        if "warmup_steps" in options:  # Transformers would pass a share as a number of steps
            options["warmup_steps"] = arguments.get_warmup_steps(total)
        return kind, options

    def make_schedule(
        self, optimizer: Any, arguments: TrainingArguments, run: TrainingSteps
    ) -> Any:
        """Return the schedule; None if the Trainer creates it itself."""
        if self.schedule_row.target is None:
            return None
        return make_schedule(
            self.schedule,
            optimizer,
            run,
            self.schedule_kwargs,
            greater_is_better=arguments.greater_is_better,
        )

    def build_averaging(self, model: nn.Module, total: int) -> Averaging | None:
        """Return the callback that averages a model's weights, if the run has one."""
        if self.optimizer.row.average_key is not None:
            return OptimizerAverage(model, self.optimizer.row.average_key)
        if self.averaging is None:
            return None
        start, every = _average_steps(self.averaging, total)
        return WeightAverage(model, decay=_decay(self.averaging), start=start, every=every)

    def build_penalty(self, model: nn.Module, new_modules: Collection[str]) -> WeightPenalty | None:
        """Return the penalty on a model's weights, if the run has one."""
        if not self.penalties:
            return None
        return WeightPenalty(model, new_modules=new_modules, **self.penalties)

    def callbacks(self) -> list[TrainerCallback]:
        """Return the callbacks of value clipping, metric schedules and schedule-free optimizers."""
        callbacks: list[TrainerCallback] = []
        if self.max_grad_value is not None:
            callbacks.append(GradientValueClipping(self.max_grad_value))
        if self.schedule_row.measures:
            callbacks.append(WarmupForMetricSchedules())
        if self.optimizer.row.own_schedule:
            callbacks.append(EndInEvaluation())
        return callbacks

    def gradient_log(self, model: nn.Module) -> GradientLog | None:
        """Return the log of a model's parts, if the recipe asks for it or parts have own rates."""
        grouped = self.optimizer.grouping.is_set or bool(self.optimizer.loraplus)
        if self.log_grad_norms is None and not grouped:
            return None
        return GradientLog(model, self.log_grad_norms)

    def check_model(self, model: nn.Module) -> None:
        """Raise if parameter groups or optimizer do not suit a model.

        Args:
            model: The model after the method's changes, with or without weights.
        """
        check_groups(model, self.optimizer.grouping)
        if self.optimizer.row.first_part is not None:
            named(self.optimizer.row.first_part)(model)

    def check_run(self, arguments: TrainingArguments, run: TrainingSteps) -> None:
        """Raise if the schedule or the average does not fit the length of the run.

        Raises:
            RecipeError: It is too long or too short, or contradicts itself.
        """
        _try_optimizer(self.optimizer, arguments)
        try:
            make_schedule(
                self.schedule,
                idle_optimizer(arguments.learning_rate),
                run,
                self.schedule_kwargs,
                greater_is_better=arguments.greater_is_better,
            )
        except (ValueError, TypeError) as error:
            said = first_line(error)
            where = "" if said.startswith("training.") else "training.lr_scheduler_kwargs: "
            raise RecipeError([f"{where}{said}"]) from error
        if self.averaging is not None:
            start, _ = _average_steps(self.averaging, run.total)
            if start > run.total:
                raise RecipeError(
                    [
                        f"regularization.weight_averaging.start: {start} optimizer steps, and the "
                        f"run has {run.total}"
                    ]
                )

    def remarks(self, run: TrainingSteps, rate: float) -> list[str]:
        """Return warnings about settings that do not suit the length of the run or the rate.

        Args:
            run: Length of the run.
            rate: The learning rate.
        """
        remarks, why = [], self.optimizer.row.full_batch
        if why is not None and (run.per_epoch is None or run.per_epoch > 1):
            remarks.append(f"{why}: put all rows into one batch, or take adamw_torch")
        if self.schedule_row.own:
            factor = make_factor(self.schedule, run, self.schedule_kwargs, rate)
            dead = [s for s in range(run.warmup, run.total) if factor(s) < DEAD_RATE]
            if dead and dead[0] < FINISH * run.total and not self.schedule_row.ends_low:
                remarks.append(
                    f"training.lr_scheduler_type: after {dead[0]} of {run.total} optimizer steps "
                    f"the rate is below a thousandth of learning_rate"
                )
        if self.averaging is not None and (decay := _decay(self.averaging)) is not None:
            start, every = _average_steps(self.averaging, run.total)
            counted, memory = (run.total - max(start, 1)) // every + 1, 1 / (1 - decay)
            if counted < memory:
                remarks.append(
                    f"regularization.weight_averaging: decay {decay:g} averages over about "
                    f"{memory:.0f} steps, and {counted} count: {decay**counted:.0%} of the average "
                    "are the weights it began with; take a smaller decay"
                )
        return remarks


def scaled_rate(recipe: Recipe, arguments: TrainingArguments) -> float:
    """Return the learning rate, scaled by the rows of an optimizer step if the recipe says so.

    Linear: Goyal et al., "Accurate, Large Minibatch SGD", 2017, arXiv:1706.02677. Square root, for
    adaptive optimizers: Malladi et al., 2022, arXiv:2205.10287.
    """
    scaling = recipe.training.get("learning_rate_scaling")
    given: float = arguments.learning_rate
    if not scaling:
        return given
    rows = arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    ratio = rows / scaling["batch_size"]
    rate = given * (ratio if scaling["rule"] == "linear" else math.sqrt(ratio))
    say(
        f"learning rate: {given:g} for {scaling['batch_size']} rows a step, so "
        f"{rate:g} for {rows} ({scaling['rule']})"
    )
    return rate


def _try_optimizer(choice: OptimizerChoice, arguments: TrainingArguments) -> None:
    """Create the optimizer for one number, so that it checks its options before weights are loaded.

    Raises:
        RecipeError: An option is invalid.
    """
    if not choice.row.groups and choice.row.target is None:
        return  # needs a whole model
    kind, options = kind_and_options(choice, arguments)
    if kind.__module__.startswith(("torch.", "transformers.", "hftune.")):
        try:
            kind([nn.Parameter(torch.zeros(1, 1))], **options)
        except (ValueError, TypeError) as error:
            raise RecipeError([f"training.optim_args: {first_line(error)}"]) from error


def _average_steps(averaging: WeightAveraging, total: int) -> tuple[int, int]:
    """Return the first step of an average and the interval of its steps, in optimizer steps."""
    start = AVERAGES[averaging.name].start if averaging.start is None else averaging.start
    every = 1 if averaging.every is None else averaging.every
    return resolve_steps(start, total), max(1, resolve_steps(every, total))


def _decay(averaging: WeightAveraging) -> float | None:
    """Return the decay of an average; None if all steps count the same."""
    return AVERAGES[averaging.name].decay if averaging.decay is None else averaging.decay


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)
