# SPDX-License-Identifier: Apache-2.0
"""Checks of single schedules of Transformers: options that the run or the rate contradicts.

Each takes the learning rate, the steps of the run and ``training.lr_scheduler_kwargs``, and raises
``ValueError``.
"""

from collections.abc import Mapping
from typing import Any

from hftune.optimization.schedule_factors import TrainingSteps

Options = Mapping[str, Any]


def check_floor(rate: float, run: TrainingSteps, kwargs: Options) -> None:
    """Refuse a lowest rate that is not below the learning rate; the schedule would rise to it.

    Example:
        >>> check_floor(1e-5, TrainingSteps(100), {"min_lr": 1e-4})
        Traceback (most recent call last):
        ValueError: min_lr: 0.0001 is not below the learning rate, 1e-05
    """
    if (kwargs.get("min_lr") or 0) >= rate:
        raise ValueError(f"min_lr: {kwargs['min_lr']:g} is not below the learning rate, {rate:g}")


def check_stages(rate: float, run: TrainingSteps, kwargs: Options) -> None:
    """Refuse stages that together are longer than the run, or shorter.

    Example:
        >>> stages = {"num_decay_steps": 95}
        >>> check_stages(1e-5, TrainingSteps(100, 10), stages)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: num_decay_steps: warmup 10, stable 0 and decay 95 are 105 ...
    """
    decay, stable = kwargs["num_decay_steps"], kwargs.get("num_stable_steps")
    stages = run.warmup + decay + (stable or 0)
    if stages > run.total or (stable is not None and stages != run.total):
        raise ValueError(
            f"num_decay_steps: warmup {run.warmup}, stable {stable or 0} and decay {decay} are "
            f"{stages} optimizer steps, and the run has {run.total}"
        )


def check_cycles(rate: float, run: TrainingSteps, kwargs: Options) -> None:
    """Refuse more cycles than there are optimizer steps.

    Example:
        >>> check_cycles(1e-5, TrainingSteps(100, warmup=10), {"num_cycles": 95})
        Traceback (most recent call last):
        ValueError: num_cycles: more than the 90 optimizer steps
    """
    if kwargs.get("num_cycles", 1) > run.total - run.warmup:
        raise ValueError(f"num_cycles: more than the {run.total - run.warmup} optimizer steps")


def check_bounds(rate: float, run: TrainingSteps, kwargs: Options) -> None:
    """Refuse bounds that do not hold the rate; the defaults of Transformers are 1e-3 and 1.

    Example:
        >>> check_bounds(1e-5, TrainingSteps(100), {"max_lr": 0.1})
        Traceback (most recent call last):
        ValueError: min_lr, max_lr: 0.001 to 0.1 does not hold training.learning_rate 1e-05
    """
    low, high = kwargs.get("min_lr", 1e-3), kwargs.get("max_lr", 1.0)
    if not low <= rate <= high:
        raise ValueError(
            f"min_lr, max_lr: {low:g} to {high:g} does not hold training.learning_rate {rate:g}"
        )
