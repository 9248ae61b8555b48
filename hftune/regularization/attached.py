# SPDX-License-Identifier: Apache-2.0
"""What holds of a model's modules while it trains, and no longer."""

from abc import ABC, abstractmethod
from typing import Any, Protocol

from transformers import TrainerCallback

from hftune.core.cost import StepCost


class Handle(Protocol):
    """What takes something off a module again."""

    def remove(self) -> None:
        """Leave the module as it was."""


class Attached(TrainerCallback, ABC):
    """Changes what modules compute from the first step to the last.

    In evaluation mode it must change nothing.
    """

    def __init__(self) -> None:
        self.handles: list[Handle] = []

    def step_cost(self) -> StepCost:
        """Return the cost of what is attached, in each step."""
        return StepCost()

    @abstractmethod
    def attach(self) -> list[Handle]:
        """Change the modules."""

    def detach(self) -> None:
        """Leave the modules as they were."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin, also where training begins again with a smaller batch."""
        self.detach()
        self.handles = self.attach()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End."""
        self.detach()
