# SPDX-License-Identifier: Apache-2.0
"""From a name and its options to a schedule on an optimizer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from hftune.core.registry import named
from hftune.optimization.metric_schedules import WarmedGreedy, WarmedPlateau
from hftune.optimization.schedule_factors import Factor, Span
from hftune.optimization.schedules import SCHEDULES

SAMPLE = Span(total=100, warmup=10, epoch=25)
#: They fall to a rate that is given; what rises to it is none.
MIN_LR = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
MEASURING = {"reduce_lr_on_plateau": WarmedPlateau, "greedy": WarmedGreedy}


def make_schedule(
    name: str,
    optimizer: Optimizer,
    span: Span,
    kwargs: Mapping[str, Any],
    *,
    greater_is_better: bool | None = None,
) -> Any:
    """Put a schedule on an optimizer.

    Args:
        name: ``training.lr_scheduler_type``.
        optimizer: Its parameter groups hold their highest rates.
        span: How long run, warmup and epoch are.
        kwargs: ``training.lr_scheduler_kwargs``.
        greater_is_better: Of the metric that the schedule follows; a smaller one if not said.

    Raises:
        ValueError: The options contradict each other, or the schedule is longer than the run.
    """
    if span.warmup >= span.total:
        raise ValueError(
            f"training.warmup_steps: {span.warmup} optimizer steps are all of the {span.total} of "
            "the run, or more"
        )
    row = SCHEDULES[name]
    if row.target is not None:
        return LambdaLR(optimizer, named(row.target)(span, **kwargs))
    if name in MEASURING:
        mode = "max" if greater_is_better else "min"
        if kwargs.get("mode", mode) != mode:
            raise ValueError(f"mode: {kwargs['mode']} is the wrong way round for this metric")
        if name == "greedy":
            _check_bounds(optimizer, kwargs)
        return MEASURING[name](optimizer, span.warmup, **{**kwargs, "mode": mode})
    if name == "warmup_stable_decay":
        _check_stages(span, kwargs)
    if name == "cosine_with_restarts" and kwargs.get("num_cycles", 1) > span.total - span.warmup:
        raise ValueError(f"num_cycles: more than the {span.total - span.warmup} optimizer steps")
    if name in MIN_LR:
        _check_floor(optimizer, kwargs)
    return get_scheduler(name, optimizer, span.warmup, span.total, dict(kwargs))


def make_factor(name: str, span: Span, kwargs: Mapping[str, Any], rate: float) -> Factor:
    """Return the factor of a schedule that does not follow a metric.

    Args:
        name: ``training.lr_scheduler_type``.
        span: How long run, warmup and epoch are.
        kwargs: ``training.lr_scheduler_kwargs``.
        rate: ``training.learning_rate``, which some options are compared with.
    """
    schedule = make_schedule(name, idle_optimizer(rate), span, kwargs)
    factor: Factor = schedule.lr_lambdas[0]
    return factor


def sample_rates(name: str, span: Span = SAMPLE) -> list[float]:
    """Return the rates of a schedule with the options of its row, as shares of the highest.

    Those that follow a metric are shown a loss that falls for four tenths of the run and stands
    still from there on, at every twentieth of it.
    """
    row, optimizer = SCHEDULES[name], idle_optimizer(1.0)
    schedule = make_schedule(name, optimizer, span, row.example)
    rates = []
    for done in range(span.total):
        if row.measures:
            schedule.climb(done)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if not row.measures:
            schedule.step()
        elif (done + 1) % (span.total // 20) == 0:
            schedule.step(max(1 - (done + 1) / span.total, 0.6))
    return rates


def idle_optimizer(rate: float) -> Optimizer:
    """Return an optimizer of one number, to try a schedule on."""
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)


def _check_floor(optimizer: Optimizer, kwargs: Mapping[str, Any]) -> None:
    rate = max(float(group["lr"]) for group in optimizer.param_groups)
    if (kwargs.get("min_lr") or 0) >= rate:
        raise ValueError(f"min_lr: {kwargs['min_lr']:g} is not below the learning rate, {rate:g}")


def _check_stages(span: Span, kwargs: Mapping[str, Any]) -> None:
    decay, stable = kwargs["num_decay_steps"], kwargs.get("num_stable_steps")
    stages = span.warmup + decay + (stable or 0)
    if stages > span.total or (stable is not None and stages != span.total):
        raise ValueError(
            f"num_decay_steps: warmup {span.warmup}, stable {stable or 0} and decay {decay} are "
            f"{stages} optimizer steps, and the run has {span.total}"
        )


def _check_bounds(optimizer: Optimizer, kwargs: Mapping[str, Any]) -> None:
    """Refuse bounds that do not hold the rate; those of Transformers are 1e-3 and 1."""
    rate = optimizer.defaults["lr"]
    low, high = kwargs.get("min_lr", 1e-3), kwargs.get("max_lr", 1.0)
    if not low <= rate <= high:
        raise ValueError(
            f"min_lr, max_lr: {low:g} to {high:g} does not hold training.learning_rate {rate:g}"
        )
