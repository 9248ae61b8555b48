# SPDX-License-Identifier: Apache-2.0
"""The average of the weights over the steps: evaluated, saved, and resumed exactly.

- ``swa``: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
  2018, arXiv:1803.05407.
- ``ema``: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992, with
  weights that fade.
- The average that ``torch.optim.ASGD`` keeps in its state.

Only what trains is averaged: the rest of a model stands still.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn
from transformers import TrainerCallback


class Averaging(TrainerCallback, ABC):
    """Keeps an average beside the weights that train.

    Args:
        model: What trains has ``requires_grad``.

    Attributes:
        live: The weights that train.
        is_settled: Whether the model holds an average for good.
    """

    def __init__(self, model: nn.Module) -> None:
        self.live = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
        self.is_settled = False

    @abstractmethod
    def averages(self) -> list[Tensor]:
        """Return the average of each weight; nothing before it has begun."""

    def averages_by_name(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the averages by the names that the weights have in their model."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        averages = self.averages()
        live = self.live if averages else ()
        return {names[id(one)]: value for one, value in zip(live, averages, strict=True)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a state that :meth:`state` returned."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors for a checkpoint; none before the average has begun."""
        return {str(index): value for index, value in enumerate(self.averages())}

    def settle(self, state: dict[str, Tensor]) -> None:
        """Put the averages of a checkpoint into the model for good.

        Args:
            state: What :meth:`state` returned; empty for a checkpoint without an average, whose
                weights are in the model.
        """
        self._put([state[str(index)] for index in range(len(self.live))] if state else [])
        self.is_settled = True

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model hold the average for a while."""
        averages = [] if self.is_settled else self.averages()
        kept = [parameter.detach().clone() for parameter in self.live] if averages else []
        self._put(averages)
        try:
            yield
        finally:
            self._put(kept)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the average in the model, unless the best checkpoint's is there."""
        if not self.is_settled:
            self._put(self.averages())
            self.is_settled = True

    def _put(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.live, values, strict=bool(values)):
                parameter.copy_(value)


class WeightAverage(Averaging):
    """An average of the weights as they are after steps.

    Args:
        model: What trains has ``requires_grad``.
        decay: The factor by which the share of a step fades with each that follows (EMA); None if
            all steps count the same (SWA).
        start: The optimizer step after which the weights count first.
        every: Steps from one that counts to the next.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        decay: float | None = None,
        start: int = 1,
        every: int = 1,
    ) -> None:
        super().__init__(model)
        function = get_swa_multi_avg_fn() if decay is None else get_ema_multi_avg_fn(decay)
        self.average = AveragedModel(self.live, multi_avg_fn=function).requires_grad_(False)
        self.start = max(start, 1)
        self.every = every

    def averages(self) -> list[Tensor]:
        """Return the average of each weight; see :class:`Averaging`."""
        return list(self.average.parameters()) if self.average.n_averaged > 0 else []

    def state(self) -> dict[str, Tensor]:
        """Return the averages and how many steps are in them."""
        state = super().state()
        return {**state, "n_averaged": self.average.n_averaged} if state else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a state that :meth:`state` returned."""
        self.average.n_averaged.copy_(state["n_averaged"])
        for index, value in enumerate(self.average.parameters()):
            value.copy_(state[str(index)])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go where the weights are."""
        self.average.to(next(iter(self.live)).device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the weights if it is time, before they are evaluated."""
        since = state.global_step - self.start
        if since >= 0 and since % self.every == 0:
            self.average.update_parameters(self.live)


class EndInEvaluation(TrainerCallback):
    """Leaves the average of a schedule-free optimizer in the model, also without evaluation."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the average in; it stays if it is there."""
        kwargs["optimizer"].eval()


class OptimizerAverage(Averaging):
    """The average in an optimizer's state; checkpoints of the optimizer hold it.

    Args:
        model: What trains has ``requires_grad``.
        key: Key of the optimizer's state that holds the average of a weight; ``ax`` for
            ``torch.optim.ASGD``.
    """

    def __init__(self, model: nn.Module, key: str) -> None:
        super().__init__(model)
        self.key = key
        self.optimizer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the optimizer."""
        self.optimizer = kwargs["optimizer"]

    def averages(self) -> list[Tensor]:
        """Return the average of each weight, or the weight where it has not been stepped."""
        if self.optimizer is None or not self.optimizer.state:
            return []
        state = self.optimizer.state
        return [state[p][self.key] if p in state else p.detach() for p in self.live]
