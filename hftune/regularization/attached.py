# SPDX-License-Identifier: Apache-2.0
"""Changes to a model's modules that last from the first step to the last."""

from abc import ABC, abstractmethod
from typing import Any, Protocol

from transformers import TrainerCallback

from hftune.core.cost import StepCost


class Handle(Protocol):
    """Removes a change from a module."""

    def remove(self) -> None:
        """Leave the module as it was."""


class Attached(TrainerCallback, ABC):
    """A change to the forward pass of modules, from the first step to the last.

    In evaluation mode it must change nothing.
    """

    def __init__(self) -> None:
        self.handles: list[Handle] = []

    def step_cost(self) -> StepCost:
        """Return the cost of the change in each step."""
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
