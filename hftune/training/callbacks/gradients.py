# SPDX-License-Identifier: Apache-2.0
"""Log gradient norms of parts of a model before clipping, and clip gradients by value.

Clipping by norm is the Trainer's own, ``training.max_grad_norm``: Pascanu et al., "On the
difficulty of training recurrent neural networks", 2013, arXiv:1211.5063.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_, get_total_norm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hftune.optimization.parameter_groups import NAME, place_name, places_of

#: torch adds this to a norm before it divides by the norm.
NORM_EPSILON = 1e-6


class GradientValueClipping(TrainerCallback):
    """Clips each component of the gradient to plus or minus a value, after clipping by norm.

    This changes the direction of the gradient.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clip the gradient before the step of the optimizer."""
        clip_grad_value_(kwargs["model"].parameters(), self.value)


class GradientLog:
    """Gradient norms of the parts of a model before clipping, and their rates if they differ.

    Args:
        model: The model, not wrapped.
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
        """Record norms and rates of the coming step; undo the scale of clipping in the norms.

        Args:
            norm: Norm of the whole gradient before clipping.
            max_norm: Largest norm that clipping allows; 0 for no clipping.
            groups: Parameter groups of the optimizer.
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
        """Return the latest norms and rates as numbers."""
        return {name: float(value) for name, value in self.measured.items()}
