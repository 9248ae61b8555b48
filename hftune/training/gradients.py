# SPDX-License-Identifier: Apache-2.0
"""Gradients looked at and cut off: norms of parts of a model before clipping, clipping by value.

Clipping by norm is the Trainer's own, ``training.max_grad_norm``: Pascanu et al., "On the
difficulty of training recurrent neural networks", 2013, arXiv:1211.5063.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_
from transformers import TrainerCallback

from hftune.optimizers.groups import NAME, place_name, places_of

#: What torch adds to a norm before it divides by it.
NORM_EPSILON = 1e-6


class GradientValueClipping(TrainerCallback):
    """Cuts each component off at plus and minus a value, after clipping by norm.

    It changes the gradient's direction.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clip what the optimizer is about to see."""
        clip_grad_value_(kwargs["model"].parameters(), self.value)


class GradientLog(TrainerCallback):
    """Adds the parts of a model to the log: norms before clipping, and rates where they differ.

    Args:
        model: Not wrapped.
        norms: ``layers``, ``groups`` or nothing.
    """

    def __init__(self, model: nn.Module, norms: str | None) -> None:
        self.norms = norms
        self.parts: dict[str, list[nn.Parameter]] = {}
        self.measured: dict[str, Tensor] = {}
        if norms == "layers":
            for (_, parameter), place in zip(
                model.named_parameters(), places_of(model).values(), strict=True
            ):
                self.parts.setdefault(place_name(place), []).append(parameter)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the optimizer's groups."""
        if self.norms == "groups":
            self.parts = {
                str(group.get(NAME, index)): group["params"]
                for index, group in enumerate(kwargs["optimizer"].param_groups)
            }

    def measure(self, norm: float | Tensor, max_norm: float) -> None:
        """Take the norms of the parts as they were before clipping.

        Args:
            norm: Of the whole gradient, before clipping.
            max_norm: What it was clipped to; 0 for nothing.
        """
        limit = max_norm or torch.inf
        scale = torch.clamp((torch.as_tensor(norm) + NORM_EPSILON) / limit, min=1.0)
        self.measured = {
            name: torch.linalg.vector_norm(torch.stack(norms)) * scale.to(norms[0])
            for name, parameters in self.parts.items()
            if (norms := [p.grad.norm() for p in parameters if p.grad is not None])
        }

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add norms and rates to a line that tells the loss."""
        logs = kwargs["logs"]
        if "loss" not in logs:
            return
        logs |= {f"grad_norm/{name}": value.item() for name, value in self.measured.items()}
        groups = kwargs["optimizer"].param_groups
        if len({group["lr"] for group in groups}) > 1:
            logs |= rates_of(groups)


def rates_of(groups: list[Mapping[str, Any]]) -> dict[str, float]:
    """Return ``learning_rate/NAME`` of each group."""
    return {
        f"learning_rate/{group.get(NAME, index)}": float(group["lr"])
        for index, group in enumerate(groups)
    }
