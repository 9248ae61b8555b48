# SPDX-License-Identifier: Apache-2.0
"""The schedules of :mod:`hftune.methods.freeze.method`: more and more of a model trains.

- ``unfreeze_every``: one layer more, from the top down. Howard and Ruder, "Universal Language Model
  Fine-tuning for Text Classification", 2018, arXiv:1801.06146.
- ``head_only_steps``: the head alone, then everything. Kumar et al., "Fine-Tuning can Distort
  Pretrained Features and Underperform Out-of-Distribution", 2022, arXiv:2202.10054.
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hftune.core.console import say
from hftune.core.errors import HftuneError
from hftune.core.steps import resolve_steps
from hftune.tasks.context import RunContext


@dataclass(frozen=True, kw_only=True)
class Unfreezing:
    """Schedule of gradual unfreezing. Numbers of steps below 1 are shares of the run.

    Args:
        head_only_steps: Optimizer steps at the start in which the head trains alone; if absent,
            as many as ``unfreeze_every`` says.
        head_only_rate: What the learning rate is multiplied by in these steps.
        unfreeze_every: Optimizer steps until one more layer trains; if absent, the head is followed
            by everything at once.
    """

    head_only_steps: float | None = field(default=None, metadata={"help": "Optimizer steps in "
        "which the head trains alone; below 1, a share of the run."})  # fmt: skip
    head_only_rate: float = field(default=1.0, metadata={"help": "What the learning rate is "
        "multiplied by in these steps."})  # fmt: skip
    unfreeze_every: float | Literal["epoch"] | None = field(default=None, metadata={"help":
        "Optimizer steps until one layer more trains, from the top down; below 1, a share of the "
        "run."})  # fmt: skip


@dataclass(frozen=True)
class UnfreezingPhases:
    """Turn 0 is the head's, turn 1 the top layer's, and so on down; a turn joins those before it.

    Attributes:
        start: Optimizer steps of turn 0.
        every: Steps of each other turn; None when all of them begin together.
        last: The turn with which everything trains.

    Example:
        >>> phases = UnfreezingPhases(start=10, every=5, last=3)
        >>> [phases.turn(step) for step in (9, 10, 15, 20, 99)]
        [0, 1, 2, 3, 3]
    """

    start: int
    every: int | None
    last: int

    @classmethod
    def of(cls, given: Unfreezing, turns: set[int], context: RunContext) -> "UnfreezingPhases":
        """Turn shares and epochs into steps.

        Args:
            given: What the recipe says.
            turns: The turns in which something begins to train.
            context: How long the run is.

        Raises:
            HftuneError: There is no head, nothing to unfreeze, or the run ends too early.
        """
        total, last = context.num_training_steps, max(turns)
        every = None
        if given.unfreeze_every == "epoch":
            if context.steps_per_epoch is None:
                raise HftuneError("method.unfreeze_every: a stream has no epochs: say steps")
            every = context.steps_per_epoch
        elif given.unfreeze_every is not None:
            every = resolve_steps(given.unfreeze_every, total)
        if given.head_only_steps and 0 not in turns:
            raise HftuneError(
                "method.head_only_steps: this model has no head that could train alone: it shares "
                "its weights with the embeddings, or is frozen"
            )
        start = (every or 0) if 0 in turns else 0
        if given.head_only_steps is not None:
            start = resolve_steps(given.head_only_steps, total)
        if last == 0 or (start == 0 and last == 1):
            raise HftuneError("method freeze: the schedule leaves nothing to unfreeze")
        phases = cls(start, every, last)
        end = start + (every or 0) * (last - 1)
        if end >= total:
            option = "head_only_steps" if every is None else "unfreeze_every"
            raise HftuneError(
                f"method.{option}: the last weights would begin to train after {end} steps, and "
                f"the run has {total}",
                hint="train longer, or" + phases._shorter(given, total),
            )
        return phases

    def _shorter(self, given: Unfreezing, total: int) -> str:
        """Return the hint that names the longest time between layers that fits the run."""
        if self.every is None:
            return f" head_only_steps: {total // 2}"
        follows = given.head_only_steps is None and self.start > 0
        left, turns = (total, self.last) if follows else (total - self.start, self.last - 1)
        fits = (left - 1) // max(turns, 1)
        if fits < 1:
            return " freeze the lowest layers for good: freeze_layers"
        return f" unfreeze_every: {fits}"

    def turn(self, step: int) -> int:
        """Return the turn that is reached when ``step`` optimizer steps are done."""
        if step < self.start:
            return 0
        if self.every is None:
            return self.last
        return min(1 + (step - self.start) // self.every, self.last)


class Unfreeze(TrainerCallback):
    """Lets more of a model train at the steps that are due.

    The optimizer was made with all that trains at some time; what has no gradient it passes over,
    without weight decay and without a state.

    Args:
        model: Not wrapped.
        phases: When.
        turns: The turn of each parameter that trains at some time.
    """

    def __init__(self, model: nn.Module, phases: UnfreezingPhases, turns: dict[str, int]) -> None:
        self.phases = phases
        self.turns = {model.get_parameter(name): turn for name, turn in turns.items()}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Switch on the parameters that train in the phase of the run."""
        self._reach(self.phases.turn(state.global_step))

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Go on to the next turn if it is time."""
        turn = self.phases.turn(state.global_step)
        if turn != self.phases.turn(state.global_step - 1):
            self._reach(turn)
            train = sum(p.numel() for p in self.turns if p.requires_grad)
            say(f"step {state.global_step}: {train:,} weights train from here on")

    def _reach(self, turn: int) -> None:
        for parameter, first in self.turns.items():
            parameter.requires_grad_(first <= turn)
