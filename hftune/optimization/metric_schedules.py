# SPDX-License-Identifier: Apache-2.0
"""The two schedules that follow a metric, with the warmup that Transformers leaves out.

The Trainer steps them at evaluations alone. So the warmup sets the rate at each optimizer step, and
an evaluation before its end does not count.
"""

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import TrainerCallback
from transformers.optimization import GreedyLR


class MetricSchedule:
    """The warmup of a schedule that is stepped at evaluations.

    Attributes:
        num_warmup_steps: Its optimizer steps.
        peaks: The rate of each parameter group behind it.
        done: Optimizer steps that were done when the latest began.
    """

    optimizer: Optimizer
    num_warmup_steps: int
    peaks: Sequence[float]
    done: int

    def begin(self, num_warmup_steps: int) -> None:
        """Remember the rates that the optimizer has now."""
        self.num_warmup_steps = num_warmup_steps
        self.peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.done = 0

    def warm_up(self, done: int) -> None:
        """Set the rate of the step that comes after ``done`` steps."""
        self.done = done
        if done <= self.num_warmup_steps > 0:
            for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * done / self.num_warmup_steps

    @property
    def is_warming_up(self) -> bool:
        """Whether the step that was done last belongs to the warmup."""
        return self.done + 1 < self.num_warmup_steps


class WarmedPlateau(MetricSchedule, ReduceLROnPlateau):
    """``reduce_lr_on_plateau`` after a warmup."""

    def __init__(self, optimizer: Optimizer, num_warmup_steps: int, **kwargs: Any) -> None:
        super().__init__(optimizer, **kwargs)
        self.begin(num_warmup_steps)

    def step(self, metrics: Any, epoch: int | None = None) -> None:  # type: ignore[override]
        """Count an evaluation."""
        if not self.is_warming_up:
            super().step(metrics, epoch)


class WarmedGreedy(MetricSchedule, GreedyLR):
    """``greedy`` after a warmup."""

    def __init__(self, optimizer: Optimizer, num_warmup_steps: int, **kwargs: Any) -> None:
        super().__init__(optimizer, **kwargs)
        self.begin(num_warmup_steps)

    def step(self, metrics: float, epoch: int | None = None) -> None:
        """Count an evaluation."""
        if not self.is_warming_up:
            super().step(metrics, epoch)


class WarmupForMetricSchedules(TrainerCallback):
    """Sets the rate during the warmup."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the rate of this step."""
        schedule = kwargs["lr_scheduler"]
        assert isinstance(schedule, MetricSchedule)
        schedule.warm_up(state.global_step)
