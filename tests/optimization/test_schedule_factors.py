# SPDX-License-Identifier: Apache-2.0
"""Our schedules against numbers worked out by hand, and against those of torch."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as torchs
from torch.optim.lr_scheduler import LRScheduler

from hftune.optimization.schedule_factors import (
    Factor,
    TrainingSteps,
    cosine_warm_restarts,
    exponential,
    inverse_time,
    multistep,
    one_cycle,
    step,
)

RATE = 0.1
TEN_EPOCHS_OF_5 = TrainingSteps(total=200, warmup=0, per_epoch=5)


def rates(factor: Factor, steps: int) -> list[float]:
    return [RATE * factor(done) for done in range(steps)]


def torch_rates(make: Callable[[Any], LRScheduler], steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)
    schedule, seen = make(optimizer), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


PAIRS: dict[str, tuple[Factor, Callable[[Any], LRScheduler]]] = {
    "step": (
        step(TrainingSteps(50), unit="step", step_size=12, gamma=0.3),
        lambda o: torchs.StepLR(o, 12, 0.3),
    ),
    "multistep": (
        multistep(TrainingSteps(50), unit="run", milestones=[0.5, 0.9], gamma=0.2),
        lambda o: torchs.MultiStepLR(o, [25, 45], 0.2),
    ),
    "exponential": (
        exponential(TrainingSteps(50), unit="step", gamma=0.95),
        lambda o: torchs.ExponentialLR(o, 0.95),
    ),
    "inverse_time": (
        inverse_time(TrainingSteps(50), unit="step", k=0.3),
        lambda o: torchs.LambdaLR(o, lambda done: 1 / (1 + 0.3 * done)),
    ),
    "one_cycle": (
        one_cycle(TrainingSteps(50, warmup=15)),
        lambda o: torchs.OneCycleLR(o, RATE, total_steps=50, pct_start=0.3),
    ),
    "one_cycle, linear": (
        one_cycle(
            TrainingSteps(50, warmup=20),
            div_factor=10,
            final_div_factor=5,
            anneal_strategy="linear",
        ),
        lambda o: torchs.OneCycleLR(
            o, RATE, total_steps=50, pct_start=0.4, div_factor=10, final_div_factor=5,
            anneal_strategy="linear",
        ),
    ),
    "cosine_warm_restarts": (
        cosine_warm_restarts(TrainingSteps(50), unit="step", T_0=7, T_mult=2, min_lr_rate=0.1),
        lambda o: torchs.CosineAnnealingWarmRestarts(o, 7, 2, eta_min=0.1 * RATE),
    ),
    "cosine_warm_restarts of one length": (
        cosine_warm_restarts(TrainingSteps(50), unit="run", T_0=0.2),
        lambda o: torchs.CosineAnnealingWarmRestarts(o, 10),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("case", PAIRS)
def test_equal_to_torchs_own_at_each_step(case: str) -> None:
    factor, make = PAIRS[case]
    steps = 49 if case.startswith("one_cycle") else 50  # torch's own ends at the last step
    assert rates(factor, steps) == pytest.approx(torch_rates(make, steps), abs=1e-12)


def test_step_by_epochs() -> None:
    """0.1 halved each ten epochs: .1, .05, .025, .0125; five steps an epoch."""
    factor = step(TEN_EPOCHS_OF_5, unit="epoch", step_size=10, gamma=0.5)
    by_epoch = [RATE * factor(5 * epoch) for epoch in range(40)]
    assert by_epoch == pytest.approx([0.1] * 10 + [0.05] * 10 + [0.025] * 10 + [0.0125] * 10)
    assert factor(49) == 1.0
    assert factor(50) == 0.5


def test_multistep_counts_the_milestones_passed() -> None:
    factor = multistep(TEN_EPOCHS_OF_5, unit="epoch", milestones=[3, 10, 11.4], gamma=0.1)
    for done, passed in [(0, 0), (14, 0), (15, 1), (49, 1), (50, 2), (56, 2), (57, 3), (199, 3)]:
        assert factor(done) == pytest.approx(0.1**passed)


def test_exponential_by_any_unit() -> None:
    """A gamma of .95 an epoch is e^-k for k = .051293, and the tenth part of it a tenth of that."""
    factor = exponential(TEN_EPOCHS_OF_5, unit="epoch", gamma=0.95)
    assert factor(50) == pytest.approx(0.95**10)
    assert factor(1) == pytest.approx(math.exp(-0.051293 / 5), abs=1e-6)
    assert exponential(TEN_EPOCHS_OF_5, unit="run", gamma=0.95)(200) == pytest.approx(0.95)
    assert exponential(TEN_EPOCHS_OF_5, unit="step", gamma=0.95)(100) < 0.006


def test_inverse_time_begins_at_the_whole_rate() -> None:
    factor = inverse_time(TEN_EPOCHS_OF_5, unit="epoch", k=1.0)
    assert [factor(5 * epoch) for epoch in range(4)] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


def test_warmup_of_each_kind() -> None:
    """Places of the run stay where they are; falls begin behind the warmup."""
    run = TrainingSteps(total=100, warmup=10, per_epoch=20)
    kinds = {
        "step": step(run, unit="step", step_size=40, gamma=0.1),
        "multistep": multistep(run, unit="run", milestones=[0.4], gamma=0.1),
        "exponential": exponential(run, unit="step", gamma=0.9),
        "inverse_time": inverse_time(run, unit="step", k=1.0),
        "cosine": cosine_warm_restarts(run, unit="step", T_0=30),
    }
    for factor in kinds.values():
        assert [factor(done) for done in range(11)] == pytest.approx([d / 10 for d in range(11)])
    assert kinds["step"](39) == kinds["multistep"](39) == 1.0
    assert kinds["step"](40) == kinds["multistep"](40) == pytest.approx(0.1)
    assert kinds["exponential"](13) == pytest.approx(0.9**3)
    assert kinds["inverse_time"](13) == pytest.approx(1 / 4)
    assert kinds["cosine"](25) == pytest.approx(0.5)
    assert kinds["cosine"](40) == 1.0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda s: step(s, unit="step", step_size=100),
            "step_size: the first fall would come after",
        ),
        (lambda s: step(s, unit="step", step_size=0.5), "step_size: 0.5 of an optimizer step"),
        (lambda s: step(s, unit="run", step_size=30), "after 3000 optimizer steps"),
        (lambda s: multistep(s, unit="step", milestones=[]), "at least one"),
        (lambda s: multistep(s, unit="step", milestones=[50, 50]), "must be rising"),
        (lambda s: multistep(s, unit="step", milestones=[90, 30]), "must be rising"),
        (lambda s: multistep(s, unit="step", milestones=[50, 100]), "milestones: 100 would come"),
        (lambda s: multistep(s, unit="step", milestones=[0.5]), "it must be at least one"),
        (lambda s: multistep(s, unit="epoch", milestones=[1]), "a stream has no epochs"),
        (lambda s: cosine_warm_restarts(s, unit="step", T_0=95), "T_0: the first cycle would end"),
        (lambda s: one_cycle(TrainingSteps(100, 0)), "begins with a rise"),
        (lambda s: one_cycle(TrainingSteps(100, 100)), "begins with a rise"),
    ],
)
def test_what_does_not_fit_the_run(make: Callable[[TrainingSteps], Factor], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make(TrainingSteps(total=100, warmup=10))
