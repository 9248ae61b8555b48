# SPDX-License-Identifier: Apache-2.0
"""Train the layers of a loss together with the model; they are resumed but not saved with it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hftune.optimization.parameter_groups import NAME

#: Name of their parameter group in the log and in checkpoints.
GROUP = "loss"


class AuxiliaryLayers(TrainerCallback):
    """Trains, clips, saves and restores the layers of a loss.

    They have the learning rate of the run and no weight decay; their gradient norm is clipped
    separately.

    Args:
        layers: See :meth:`hftune.losses.loss.Loss.layers`.
    """

    def __init__(self, layers: nn.Module) -> None:
        self.layers = layers

    def join(self, optimizer: Optimizer, device: torch.device, rate: float) -> None:
        """Add the layers to an optimizer."""
        self.layers.to(device)
        parameters = list(self.layers.parameters())
        optimizer.add_param_group(
            {"params": parameters, "lr": rate, "weight_decay": 0.0, NAME: GROUP}
        )

    def average_gradients(self) -> None:
        """Average the gradients of a step over the processes, as DDP does for the model."""
        for parameter in self.layers.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= torch.distributed.get_world_size()

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint."""
        return dict(self.layers.state_dict())

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load the tensors of a checkpoint."""
        self.layers.load_state_dict(state)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clip the gradient before the step of the optimizer."""
        if args.max_grad_norm > 0:
            clip_grad_norm_(self.layers.parameters(), args.max_grad_norm)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clear the gradients after a step."""
        self.layers.zero_grad()
