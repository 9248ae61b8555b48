# SPDX-License-Identifier: Apache-2.0
"""Schedules as factors of the learning rate by the number of optimizer steps that are done.

``step`` and ``multistep`` count from the start of the run, so that their places are those of the
recipe. The others begin where the warmup ends, as Transformers' own do. During the warmup the
factor is that of the schedule times a straight line from 0.

Sources: exponential and 1/t decay, Robbins and Monro, "A Stochastic Approximation Method", 1951;
warm restarts, Loshchilov and Hutter, "SGDR", 2017, arXiv:1608.03983; one cycle, Smith and Topin,
"Super-Convergence", 2018, arXiv:1708.07120, in the form of ``torch.optim.lr_scheduler.OneCycleLR``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Factor = Callable[[int], float]

#: Places that differ by less are the same: shares of a run are rounded.
ROUNDING = 1e-9


@dataclass(frozen=True)
class TrainingSteps:
    """The length of a run in optimizer steps.

    Attributes:
        total: Optimizer steps of the run.
        warmup: Those of the warmup.
        per_epoch: Those of one pass over the rows; None for a stream.
    """

    total: int
    warmup: int = 0
    per_epoch: int | None = None

    def steps(self, unit: str) -> int:
        """Return how many steps a unit has.

        Raises:
            ValueError: There are no epochs.
        """
        if unit == "epoch" and self.per_epoch is None:
            raise ValueError("unit: a stream has no epochs: say step or run")
        return {"step": 1, "epoch": self.per_epoch or 0, "run": self.total}[unit]


def warmed(factor: Factor, run: TrainingSteps) -> Factor:
    """Multiply by a straight line from 0, as long as the warmup lasts."""
    return lambda done: factor(done) * (done / run.warmup if done < run.warmup else 1.0)


def step(run: TrainingSteps, *, unit: str, step_size: float, gamma: float = 0.1) -> Factor:
    """Multiply by ``gamma`` after each ``step_size`` units."""
    size = step_size * run.steps(unit)
    _at_least_one("step_size", size)
    _within("step_size: the first fall", size, run)
    return warmed(lambda done: gamma ** math.floor(done / size + ROUNDING), run)


def multistep(
    run: TrainingSteps, *, unit: str, milestones: Sequence[float], gamma: float = 0.1
) -> Factor:
    """Multiply by ``gamma`` at each milestone."""
    places = [milestone * run.steps(unit) for milestone in milestones]
    if not places or any(late <= early for early, late in pairwise(places)):
        raise ValueError(f"milestones: {list(milestones)} must be rising numbers, at least one")
    _at_least_one("milestones", places[0])
    _within(f"milestones: {milestones[-1]}", places[-1], run)
    return warmed(lambda done: gamma ** sum(done >= place - ROUNDING for place in places), run)


def exponential(run: TrainingSteps, *, unit: str, gamma: float) -> Factor:
    """Multiply by ``gamma`` in each unit, in equal parts at each step."""
    size = run.steps(unit)
    return warmed(lambda done: gamma ** (_after(done, run) / size), run)


def inverse_time(run: TrainingSteps, *, unit: str, k: float) -> Factor:
    """Divide by ``1 + k t`` after ``t`` units."""
    size = run.steps(unit)
    return warmed(lambda done: 1 / (1 + k * _after(done, run) / size), run)


def cosine_warm_restarts(
    run: TrainingSteps,
    *,
    unit: str,
    T_0: float,
    T_mult: int = 1,
    min_lr_rate: float = 0.0,
) -> Factor:
    """Fall along half a cosine and begin anew, each time after ``T_mult`` times as long."""
    first = T_0 * run.steps(unit)
    _at_least_one("T_0", first)
    _within("T_0: the first cycle", first + run.warmup, run, may_reach=True)

    def factor(done: int) -> float:
        since, length = float(_after(done, run)), first
        while since >= length - ROUNDING:
            since, length = since - length, length * T_mult
        share = (1 + math.cos(math.pi * max(since, 0.0) / length)) / 2
        return min_lr_rate + (1 - min_lr_rate) * share

    return warmed(factor, run)


def one_cycle(
    run: TrainingSteps,
    *,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    anneal_strategy: str = "cos",
) -> Factor:
    """Rise from ``1 / div_factor`` in the warmup, then fall to that over ``final_div_factor``."""
    if not 1 < run.warmup < run.total:
        raise ValueError(
            "one_cycle begins with a rise: training.warmup_steps must be at least 2 steps, and "
            f"fewer than the {run.total} of the run; it is {run.warmup}"
        )
    low = 1 / div_factor
    peak, last = run.warmup - 1, run.total - 1

    def between(start: float, end: float, share: float) -> float:
        if anneal_strategy == "linear":
            return start + (end - start) * share
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    def factor(done: int) -> float:
        if done <= peak:
            return between(low, 1.0, done / peak)
        return between(1.0, low / final_div_factor, min(1.0, (done - peak) / (last - peak)))

    return factor


def _after(done: int, run: TrainingSteps) -> int:
    """Return the number of steps since the warmup."""
    return max(done - run.warmup, 0)


def _at_least_one(option: str, steps: float) -> None:
    if steps < 1 - ROUNDING:
        raise ValueError(f"{option}: {steps:.3g} of an optimizer step; it must be at least one")


def _within(what: str, place: float, run: TrainingSteps, *, may_reach: bool = False) -> None:
    """Raise if a place lies behind the last step."""
    if place > run.total + ROUNDING or (place >= run.total - ROUNDING and not may_reach):
        raise ValueError(
            f"{what} would {'end' if may_reach else 'come'} after {place:.0f} optimizer steps, and "
            f"the run has {run.total}"
        )
