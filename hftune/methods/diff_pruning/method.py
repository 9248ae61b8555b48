# SPDX-License-Identifier: Apache-2.0
"""Diff pruning in a run: gates under a penalty, the projection, the rest with a fixed mask."""

from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hftune.core.console import say
from hftune.core.cost import StepCost
from hftune.core.errors import HftuneError
from hftune.methods.diff_pruning.config import DiffPruningConfig
from hftune.methods.diff_pruning.model import DiffPruningModel
from hftune.methods.peft import Peft
from hftune.tasks.context import RunContext

#: How far a gate can travel before the projection, in units of log alpha; closing takes about 11.
GATE_TRAVEL = 40.0
#: Share of the steps before the projection after which the target itself is allowed.
SCHEDULED = 0.8


class DiffPruning(Peft):
    """A difference on every weight that ends sparse; see :mod:`hftune.methods.diff_pruning`."""

    def config(self, context: RunContext, **overrides: object) -> PeftConfig:
        """Build the config; the gates' rate follows from the run's rate and length.

        Raises:
            HftuneError: A field is out of its range, or the run is too short for the phases.
        """
        config = super().config(context, **overrides)
        assert isinstance(config, DiffPruningConfig)
        steps = context.num_training_steps
        first = projection_step(config.projection_ratio, steps)
        if config.projection_ratio < 1 and first >= steps:
            raise HftuneError(
                f"method.projection_ratio: {config.projection_ratio} of {steps} optimizer steps "
                "leaves none with a fixed mask",
                hint="train longer, or set it to 1 for no such steps",
            )
        if config.gate_lr_ratio is None:
            config.gate_lr_ratio = GATE_TRAVEL / (context.learning_rate * first)
        return config

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Return the penalty of an optimizer step; see :class:`DiffPruningModel`."""
        return _tuner(model).penalty()

    def step_cost(self, meta_model: nn.Module) -> StepCost:
        """Return the masks, and the gates' share of the penalty; see :class:`Method`.

        What a layer computes of weights, noise and gates counts as activations of the layer.
        """
        return _tuner(meta_model).step_cost()

    def callbacks(self, model: nn.Module) -> list[TrainerCallback]:
        """Return the callback that leads through the phases."""
        return [DiffPruningPhases(_tuner(model))] if isinstance(model, PeftModel) else []


class DiffPruningPhases(TrainerCallback):
    """Moves the allowed share of open gates, projects once, and leaves the difference sparse.

    All follows from the step and the stored tensors, so a resumed run goes the same way.

    Args:
        tuner: Of the model that trains.
    """

    def __init__(self, tuner: DiffPruningModel) -> None:
        self.tuner = tuner
        self.config: DiffPruningConfig = tuner.peft_config["default"]

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Lower the share that the penalty lets pass: from 1 by equal factors to the target."""
        if self.config.penalty_schedule == "exponential":
            first = projection_step(self.config.projection_ratio, state.max_steps)
            done = min(1.0, state.global_step / (SCHEDULED * first))
            self.tuner.allowed_share = (1 - self.config.target_sparsity) ** done

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Project at the end of the first phase, before this step is evaluated and saved."""
        first = projection_step(self.config.projection_ratio, state.max_steps)
        if state.global_step < first or self.tuner.is_projected():
            return
        self._project()
        for difference in self.tuner.differences():
            for parameter in difference.parameters():
                kwargs["optimizer"].state.pop(parameter, None)  # moments of another function
        # Checkpoints from before the projection are not what the run is to give back.
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say how many gates are open."""
        if "loss" in kwargs["logs"] and self.config.mode == "l0":
            kwargs["logs"]["open_share"] = self.tuner.open_share().item()

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Leave indices and values; a run that was stopped early is projected here."""
        if not self.tuner.is_projected():
            self._project()
        self.tuner.finish()

    def _project(self) -> None:
        """Project on every process, and then take the first one's mask, whatever the hardware."""
        kept, total = self.tuner.project(), self.tuner.num_weights()
        if torch.distributed.is_initialized():
            for difference in self.tuner.differences():
                torch.distributed.broadcast(difference.kept.view(torch.uint8), 0)
                torch.distributed.broadcast(difference.delta.data, 0)
        say(
            f"diff pruning: {kept} of {total} weights may differ from the base ({kept / total:.3%})"
        )


def projection_step(ratio: float, steps: int) -> int:
    """Return the number of optimizer steps before the projection.

    Example:
        >>> projection_step(0.5, 100)
        50
    """
    return max(1, round(ratio * steps))


def _tuner(model: nn.Module) -> DiffPruningModel:
    tuner = model.base_model
    assert isinstance(tuner, DiffPruningModel)
    return tuner
