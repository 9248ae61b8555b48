# SPDX-License-Identifier: Apache-2.0
"""Checks of single schedules of Transformers: options that the run or the rate contradicts.

Each takes the learning rate, the steps of the run and ``training.lr_scheduler_kwargs``, and raises
``ValueError``.
"""

from collections.abc import Mapping
from typing import Any

from hftune.optimization.schedule_factors import Span


def check_floor(rate: float, span: Span, kwargs: Mapping[str, Any]) -> None:
    """Refuse a lowest rate that is not below the learning rate; the schedule would rise to it."""
    if (kwargs.get("min_lr") or 0) >= rate:
        raise ValueError(f"min_lr: {kwargs['min_lr']:g} is not below the learning rate, {rate:g}")


def check_stages(rate: float, span: Span, kwargs: Mapping[str, Any]) -> None:
    """Refuse stages that together are longer than the run, or shorter."""
    decay, stable = kwargs["num_decay_steps"], kwargs.get("num_stable_steps")
    stages = span.warmup + decay + (stable or 0)
    if stages > span.total or (stable is not None and stages != span.total):
        raise ValueError(
            f"num_decay_steps: warmup {span.warmup}, stable {stable or 0} and decay {decay} are "
            f"{stages} optimizer steps, and the run has {span.total}"
        )


def check_cycles(rate: float, span: Span, kwargs: Mapping[str, Any]) -> None:
    """Refuse more cycles than there are optimizer steps."""
    if kwargs.get("num_cycles", 1) > span.total - span.warmup:
        raise ValueError(f"num_cycles: more than the {span.total - span.warmup} optimizer steps")


def check_bounds(rate: float, span: Span, kwargs: Mapping[str, Any]) -> None:
    """Refuse bounds that do not hold the rate; the defaults of Transformers are 1e-3 and 1."""
    low, high = kwargs.get("min_lr", 1e-3), kwargs.get("max_lr", 1.0)
    if not low <= rate <= high:
        raise ValueError(
            f"min_lr, max_lr: {low:g} to {high:g} does not hold training.learning_rate {rate:g}"
        )
