# SPDX-License-Identifier: Apache-2.0
"""Schedules of Transformers at steps worked out by hand, the table, and warmup of each."""

import inspect
import math
from itertools import pairwise
from typing import Any

import pytest
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import SchedulerType
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR, get_scheduler

from hftune.optimization.make_schedule import idle_optimizer, make_factor, make_schedule
from hftune.optimization.schedule_factors import TrainingSteps
from hftune.optimization.schedules import SCHEDULES

RATE = 0.1
RUN = TrainingSteps(total=100, warmup=10, per_epoch=25)
#: What the functions are given anyway.
GIVEN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}


def factors(name: str, at: list[int], run: TrainingSteps = RUN, **kwargs: Any) -> list[float]:
    factor = make_factor(name, run, {**SCHEDULES[name].example, **kwargs}, RATE)
    return [factor(done) for done in at]


@pytest.mark.parametrize("name", [kind.value for kind in SchedulerType])
def test_the_table_has_the_options_of_transformers(name: str) -> None:
    function = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    if name == "reduce_lr_on_plateau":
        function = ReduceLROnPlateau.__init__
    elif name == "greedy":
        function = GreedyLR.__init__
    known = set(inspect.signature(function).parameters) - GIVEN - {"self", "verbose"}
    assert set(SCHEDULES[name].kwargs) == known


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("linear", {}, {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.5, 100: 0.0}),
        ("constant", {}, {0: 1.0, 50: 1.0, 100: 1.0}),
        ("constant_with_warmup", {}, {0: 0.0, 5: 0.5, 10: 1.0, 100: 1.0}),
        ("cosine", {}, {0: 0.0, 10: 1.0, 55: 0.5, 100: 0.0}),
        ("cosine_with_restarts", {"num_cycles": 3}, {10: 1.0, 25: 0.5, 40: 1.0, 70: 1.0, 100: 0.0}),
        ("polynomial", {"power": 2.0, "lr_end": 0.0}, {10: 1.0, 55: 0.25, 100: 0.0}),
        ("inverse_sqrt", {}, {10: 1.0, 40: 0.5, 90: 1 / 3}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.2}, {10: 1.0, 55: 0.6, 100: 0.2}),
        ("cosine_warmup_with_min_lr", {}, {0: 0.3, 9: 1.0, 99: 0.1}),
        ("warmup_stable_decay", {"num_decay_steps": 40}, {5: 0.5, 60: 1.0, 80: 0.5, 100: 0}),
        ("step", {}, {5: 0.5, 29: 1.0, 30: 0.5, 60: 0.25, 90: 0.125}),
        ("multistep", {}, {5: 0.5, 49: 1.0, 50: 0.1, 75: 0.01}),
        ("exponential", {"unit": "epoch", "gamma": 0.5}, {5: 0.5, 10: 1.0, 35: 0.5, 60: 0.25}),
        ("inverse_time", {"unit": "epoch", "k": 1}, {5: 0.5, 10: 1.0, 35: 0.5, 60: 1 / 3}),
        ("one_cycle", {}, {0: 0.04, 9: 1.0, 54: (1 + 4e-6) / 2, 99: 4e-6}),
        ("cosine_warm_restarts", {"T_0": 30, "T_mult": 1}, {10: 1.0, 25: 0.5, 40: 1.0, 55: 0.5}),
    ],
)  # fmt: skip
def test_worked_out_by_hand(name: str, kwargs: dict, expected: dict[int, float]) -> None:
    assert factors(name, list(expected), **kwargs) == pytest.approx(
        list(expected.values()), abs=1e-9
    )


def test_warmup_and_cosine_of_the_notes() -> None:
    """0 at 0, 1 at 1,000, a half at 5,500 and 0 at 10,000."""
    run = TrainingSteps(10_000, 1000)
    assert factors("cosine", [0, 1000, 5500, 10_000], run) == pytest.approx([0, 1, 0.5, 0])


@pytest.mark.parametrize("name", [n for n, row in SCHEDULES.items() if not row.flat])
def test_every_schedule_warms_up(name: str) -> None:
    """The rate rises with each step of the warmup, and stands at its peak behind it."""
    row = SCHEDULES[name]
    optimizer = idle_optimizer(RATE)
    schedule = make_schedule(name, optimizer, RUN, row.example)
    seen = []
    for done in range(14):
        if row.measures:
            schedule.warm_up(done)
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if not row.measures:
            schedule.step()
    assert all(late > early for early, late in pairwise(seen[:10]))
    assert max(seen) == pytest.approx(RATE)
    assert seen.index(max(seen)) in (9, 10)


def test_plateau_falls_at_the_third_bad_evaluation() -> None:
    """With patience 2 not at the second; evaluations during the warmup do not count."""
    optimizer = idle_optimizer(RATE)
    schedule = make_schedule(
        "reduce_lr_on_plateau", optimizer, TrainingSteps(100, 10), {"patience": 2}
    )
    seen = []
    for done, loss in enumerate([0.1, 1.0, 1.0, 1.0, 1.0, 1.0]):
        schedule.warm_up(5 if done == 0 else 20 + done)
        schedule.step(loss)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([0.05, 0.05, 0.05, 0.05, 0.005, 0.005])
    assert schedule.best == 1.0


def test_plateau_looks_the_way_of_the_metric() -> None:
    for greater, falls in ((True, False), (False, True)):
        optimizer = idle_optimizer(RATE)
        schedule = make_schedule(
            "reduce_lr_on_plateau",
            optimizer,
            TrainingSteps(100),
            {"patience": 0},
            greater_is_better=greater,
        )
        for metric in (0.5, 0.6, 0.7):
            schedule.step(metric)
        assert (optimizer.param_groups[0]["lr"] < RATE) == falls
    with pytest.raises(ValueError, match="the wrong way round"):
        make_schedule(
            "reduce_lr_on_plateau",
            optimizer,
            TrainingSteps(100),
            {"mode": "min"},
            greater_is_better=True,
        )


def test_measuring_schedules_are_transformers_own_without_warmup() -> None:
    """The same rates from the same metrics, and one state resumes the other."""
    metrics = [3.0, 2.0, 2.5, 2.5, 2.5, 2.5, 1.0, 0.9, 0.8, 0.7, 0.6]
    kwargs = {"patience": 1, "min_lr": 0.0}
    for name in (name for name, row in SCHEDULES.items() if row.measures):
        ours, theirs = idle_optimizer(RATE), idle_optimizer(RATE)
        mine = make_schedule(name, ours, TrainingSteps(100), kwargs)
        plain = get_scheduler(name, theirs, 0, 100, dict(kwargs))
        for number, metric in enumerate(metrics):
            if number == 5:
                again = make_schedule(name, ours, TrainingSteps(100), kwargs)
                again.load_state_dict(mine.state_dict())
                mine = again
            mine.warm_up(number)
            mine.step(metric)
            plain.step(metric)
            assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        assert ours.param_groups[0]["lr"] != RATE


@pytest.mark.parametrize(
    ("name", "run", "kwargs", "says"),
    [
        ("linear", TrainingSteps(100, 100), {}, "100 optimizer steps are all of the 100"),
        ("step", TrainingSteps(100, 200), {"unit": "step", "step_size": 3}, "warmup_steps: 200"),
        ("warmup_stable_decay", TrainingSteps(100, 10), {"num_decay_steps": 95},
         "are 105 optimizer steps"),
        ("warmup_stable_decay", TrainingSteps(100, 10),
         {"num_decay_steps": 20, "num_stable_steps": 20},
         "are 50 optimizer steps, and the run has 100"),
        ("cosine_with_restarts", TrainingSteps(10, 5), {"num_cycles": 6},
         "more than the 5 optimizer steps"),
        ("polynomial", TrainingSteps(100), {"lr_end": 0.5}, "lr_end .* must be smaller"),
        ("greedy", TrainingSteps(100), {"max_lr": 0.01}, "does not hold training.learning_rate"),
        ("cosine_with_min_lr", TrainingSteps(100), {"min_lr": RATE}, "not below the learning rate"),
        ("linear", TrainingSteps(1, 1), {}, "warmup_steps: 1 optimizer steps are all of the 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_run(name: str, run: TrainingSteps, kwargs: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_schedule(name, idle_optimizer(RATE), run, kwargs)


def test_greedy_would_stay_at_its_own_bounds() -> None:
    """Transformers' lowest rate, 1e-3, lies above the rates of fine-tuning."""
    with pytest.raises(ValueError, match="min_lr"):
        make_schedule("greedy", idle_optimizer(5e-5), TrainingSteps(100), {})


def test_cosine_reaches_the_mean_half_way() -> None:
    low, high = 0.01, RATE
    middle = factors("cosine_with_min_lr", [50], TrainingSteps(100), min_lr=low, min_lr_rate=None)
    assert middle[0] * high == pytest.approx((low + high) / 2)
    assert math.isclose(factors("cosine_with_min_lr", [25], TrainingSteps(100), min_lr_rate=0.0)[0],
                        (1 + math.cos(math.pi / 4)) / 2)  # fmt: skip
