# SPDX-License-Identifier: Apache-2.0
"""Sweep the learning rate over the run of a plan, and keep nothing of that run."""

import copy
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hftune.core.console import console
from hftune.core.errors import RunError
from hftune.optimization.lr_sweep_reading import Divergence, RangeTest, rate_at, read_sweep
from hftune.optimization.schedule_factors import TrainingSteps
from hftune.regularization.weight_averaging import Averaging
from hftune.training.build import build_trainer
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.optimization import Optimization
from hftune.training.plan.plan import Plan
from hftune.training.speedups import speedups

#: A slope needs at least this many losses.
LEAST = 5


@dataclass(frozen=True, kw_only=True)
class Sweep(Optimization):
    """The optimizer of a recipe with a rising rate; parameter groups keep their ratios.

    Attributes:
        start: The rate of the first step.
        end: The rate of the last step.
        steps: Number of steps.
    """

    start: float
    end: float
    steps: int

    def make_schedule(
        self, optimizer: Optimizer, arguments: TrainingArguments, training_steps: TrainingSteps
    ) -> LambdaLR:
        """Return the sweep as the schedule; see :class:`Optimization`."""
        given = arguments.learning_rate
        return LambdaLR(
            optimizer, lambda done: rate_at(done, self.start, self.end, self.steps) / given
        )

    def build_averaging(self, model: nn.Module, total: int) -> Averaging | None:
        """Return None: the sweep judges the weights themselves, not their average."""
        return None


class Watch(TrainerCallback):
    """Records the losses, and stops the sweep at its end or when the loss diverges."""

    def __init__(self, sweep: Sweep, bar: Progress) -> None:
        self.sweep = sweep
        self.bar, self.task = bar, bar.add_task("sweeping", total=sweep.steps)
        self.losses: list[float] = []
        self.diverges = Divergence()
        self.stopped = False

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the loss of a step."""
        if "loss" not in kwargs["logs"]:
            return
        loss = float(kwargs["logs"]["loss"])
        self.bar.update(self.task, completed=len(self.losses), description=f"loss {loss:.4g}")
        self.stopped = self.diverges(loss)
        if not self.stopped:
            self.losses.append(loss)
        # One step more than there are rates: its loss shows the effect of the last rate.
        if self.stopped or len(self.losses) > self.sweep.steps:
            control.should_training_stop = True


def sweep(
    plan: Plan, *, start: float, end: float, steps: int, model: nn.Module | None = None
) -> RangeTest:
    """Train with a rising rate and return the course of the loss.

    Args:
        plan: The run; no run folder is created.
        start: The first rate.
        end: The last rate.
        steps: Optimizer steps from the first rate to the last.
        model: The user's own model; its weights are restored afterwards. By default the plan's
            model is loaded, and discarded afterwards.

    Raises:
        RunError: The loss diverges before there are enough losses for a curve.
    """
    rising = Sweep(
        **{**vars(plan.settings.optimization), "averaging": None, "log_grad_norms": None},
        start=start, end=end, steps=steps,
    )  # fmt: skip
    with (
        _generators_put_back(),
        tempfile.TemporaryDirectory() as folder,
        Progress(console=console(), disable=not console().is_terminal, transient=True) as bar,
    ):
        watch = Watch(rising, bar)
        _train(plan, _swept(plan, rising, folder), watch, model)
    losses = watch.losses[1:]  # the loss of a step shows the effect of the step before
    if len(losses) < LEAST:
        raise RunError(
            f"the loss diverged after {len(losses)} of {steps} optimizer steps, at a rate of "
            f"{rate_at(max(len(losses), 1), start, end, steps):.1e}",
            hint=f"more --steps, a lower --end, or a lower --start than {start:.1e}",
        )
    rates = [rate_at(step, start, end, steps) for step in range(len(losses))]
    return read_sweep(rates, losses, planned=steps, stopped=watch.stopped)


def _train(plan: Plan, swept: Plan, watch: Watch, model: nn.Module | None) -> None:
    """Train with the rising rate, and restore the weights of the user's own model."""
    kept = None if model is None else copy.deepcopy(model.state_dict())
    loaded = load_model(plan) if model is None else LoadedModel(model)
    try:
        trainer = build_trainer(swept, loaded, [watch])
        with speedups(swept, trainer):
            trainer.train()
    finally:
        if kept is not None:
            loaded.model.load_state_dict(kept)
            loaded.model.zero_grad()


def _swept(plan: Plan, rising: Sweep, folder: str) -> Plan:
    """Return the plan of the sweep: no evaluation, saving or trackers, and enough steps."""
    fields = {
        "output_dir": folder,
        "eval_strategy": IntervalStrategy.NO,
        "save_strategy": SaveStrategy.NO,
        "logging_strategy": IntervalStrategy.STEPS,
        "logging_steps": 1,
        "load_best_model_at_end": False,
        "auto_find_batch_size": False,
        "eval_on_start": False,
        "report_to": [],
    }
    if plan.training_steps.total <= rising.steps:
        fields["max_steps"] = rising.steps + 1
    settings = replace(plan.settings.with_arguments(**fields), optimization=rising)
    batches = plan.splits.token_batches and plan.splits.token_batches.for_run(settings.arguments)
    splits = replace(plan.splits, validation=None, token_batches=batches)
    return replace(plan, settings=settings, splits=splits)


@contextmanager
def _generators_put_back() -> Iterator[None]:
    """Restore the random generators of Python, NumPy and torch after the context."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
