# SPDX-License-Identifier: Apache-2.0
"""Layers of a loss that train along with the model, are resumed exactly, and are thrown away."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from transformers import TrainerCallback

from hftune.optimization.parameter_groups import NAME

#: Their parameter group in the log and in checkpoints.
GROUP = "loss"


class AuxiliaryLayers(TrainerCallback):
    """Does for a loss's layers what the Trainer does for those of the model.

    They have the rate of the run and no weight decay, and are clipped by a norm of their own.

    Args:
        layers: See :meth:`hftune.losses.loss.Loss.layers`.
    """

    def __init__(self, layers: nn.Module) -> None:
        self.layers = layers

    def join(self, optimizer: Optimizer, device: torch.device, rate: float) -> None:
        """Let an optimizer step them, too."""
        self.layers.to(device)
        parameters = list(self.layers.parameters())
        optimizer.add_param_group(
            {"params": parameters, "lr": rate, "weight_decay": 0.0, NAME: GROUP}
        )

    def average_gradients(self) -> None:
        """Average the gradients of a step over the processes, as is done for the model's."""
        for parameter in self.layers.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= torch.distributed.get_world_size()

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold."""
        return dict(self.layers.state_dict())

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`state` returned."""
        self.layers.load_state_dict(state)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clip what the optimizer is about to see."""
        if args.max_grad_norm > 0:
            clip_grad_norm_(self.layers.parameters(), args.max_grad_norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the next step without a gradient."""
        self.layers.zero_grad()
