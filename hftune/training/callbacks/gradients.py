# SPDX-License-Identifier: Apache-2.0
"""Gradients looked at and cut off: norms of parts of a model before clipping, clipping by value.

Clipping by norm is the Trainer's own, ``training.max_grad_norm``: Pascanu et al., "On the
difficulty of training recurrent neural networks", 2013, arXiv:1211.5063.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_, get_total_norm
from transformers import TrainerCallback

from hftune.optimization.parameter_groups import NAME, place_name, places_of

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


class GradientLog:
    """The parts of a model in the log: norms before clipping, and rates where they differ.

    Args:
        model: Not wrapped.
        norms: ``layers``, ``groups`` or nothing.
    """

    def __init__(self, model: nn.Module, norms: str | None) -> None:
        self.norms = norms
        self.layers: dict[str, list[nn.Parameter]] = {}
        self.measured: dict[str, Tensor | float] = {}
        if norms == "layers":
            for (_, parameter), place in zip(
                model.named_parameters(), places_of(model).values(), strict=True
            ):
                self.layers.setdefault(place_name(place), []).append(parameter)

    def measure(
        self, norm: float | Tensor, max_norm: float, groups: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take norms and rates of the step that comes; what is clipped already is scaled back.

        Args:
            norm: Of the whole gradient, before clipping.
            max_norm: What it was clipped to; 0 for nothing.
            groups: Of the optimizer.
        """
        scale = max(1.0, (float(norm) + NORM_EPSILON) / (max_norm or math.inf))
        by_name = {str(group.get(NAME, index)): group for index, group in enumerate(groups)}
        parts = self.layers
        if self.norms == "groups":
            parts = {name: group["params"] for name, group in by_name.items()}
        self.measured = {
            f"grad_norm/{name}": get_total_norm(gradients) * scale
            for name, parameters in parts.items()
            if (gradients := [p.grad for p in parameters if p.grad is not None])
        }
        rates = {f"learning_rate/{name}": float(group["lr"]) for name, group in by_name.items()}
        if len(set(rates.values())) > 1:
            self.measured |= rates

    def figures(self) -> dict[str, float]:
        """Return what was measured last, as numbers."""
        return {name: float(value) for name, value in self.measured.items()}
