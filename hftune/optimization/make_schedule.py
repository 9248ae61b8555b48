# SPDX-License-Identifier: Apache-2.0
"""Resolve a schedule's name and its options to a schedule on an optimizer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from hftune.core.registry import named
from hftune.optimization.schedule_factors import Factor, TrainingSteps
from hftune.optimization.schedules import SCHEDULES

SAMPLE = TrainingSteps(total=100, warmup=10, per_epoch=25)


def make_schedule(
    name: str,
    optimizer: Optimizer,
    run: TrainingSteps,
    kwargs: Mapping[str, Any],
    *,
    greater_is_better: bool | None = None,
) -> Any:
    """Put a schedule on an optimizer.

    Args:
        name: ``training.lr_scheduler_type``.
        optimizer: Its parameter groups hold their highest rates.
        run: Its length.
        kwargs: ``training.lr_scheduler_kwargs``.
        greater_is_better: Of the metric that the schedule follows; a smaller one if not said.

    Raises:
        ValueError: The options contradict each other, or the schedule is longer than the run.
    """
    if run.warmup >= run.total:
        raise ValueError(
            f"training.warmup_steps: {run.warmup} optimizer steps are all of the {run.total} of "
            "the run, or more"
        )
    row = SCHEDULES[name]
    mode = "max" if greater_is_better else "min"
    if row.measures and kwargs.get("mode", mode) != mode:
        raise ValueError(f"mode: {kwargs['mode']} is the wrong way round for this metric")
    if row.check is not None:
        named(row.check)(optimizer.defaults["lr"], run, kwargs)
    if row.target is None:
        return get_scheduler(name, optimizer, run.warmup, run.total, dict(kwargs))
    if row.measures:
        return named(row.target)(optimizer, run.warmup, **{**kwargs, "mode": mode})
    return LambdaLR(optimizer, named(row.target)(run, **kwargs))


def make_factor(name: str, run: TrainingSteps, kwargs: Mapping[str, Any], rate: float) -> Factor:
    """Return the factor of a schedule that does not follow a metric.

    Args:
        name: ``training.lr_scheduler_type``.
        run: Its length.
        kwargs: ``training.lr_scheduler_kwargs``.
        rate: ``training.learning_rate``, which some options are compared with.
    """
    schedule = make_schedule(name, idle_optimizer(rate), run, kwargs)
    factor: Factor = schedule.lr_lambdas[0]
    return factor


def sample_rates(name: str, run: TrainingSteps = SAMPLE) -> list[float]:
    """Return the rates of a schedule with the options of its row, as shares of the highest.

    Those that follow a metric are shown a loss that falls for four tenths of the run and stands
    still from there on, at every twentieth of it.
    """
    row, optimizer = SCHEDULES[name], idle_optimizer(1.0)
    schedule = make_schedule(name, optimizer, run, row.example)
    rates = []
    for done in range(run.total):
        if row.measures:
            schedule.warm_up(done)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if not row.measures:
            schedule.step()
        elif (done + 1) % (run.total // 20) == 0:
            schedule.step(max(1 - (done + 1) / run.total, 0.6))
    return rates


def idle_optimizer(rate: float) -> Optimizer:
    """Return an optimizer of one number, to try a schedule on."""
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
