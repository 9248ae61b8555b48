# SPDX-License-Identifier: Apache-2.0
"""Noise on weights and on gradients: drawn by seed and step, so equal on every process.

- On weights: An, "The Effects of Adding Noise During Backpropagation Training on a Generalization
  Performance", 1996.
- On gradients: Neelakantan et al., "Adding Gradient Noise Improves Learning for Very Deep
  Networks", 2015, arXiv:1511.06807, section 3.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from hftune.core.cost import StepCost
from hftune.core.rng import normal_like
from hftune.models.module_names import Pattern, check_pattern, is_named


class WeightNoise:
    """``w + N(0, std²)`` while a gradient is computed; then the weights are restored.

    All micro-batches of an optimizer step see the same noise, so it does not matter how a step is
    split.

    Args:
        model: What trains has ``requires_grad``.
        std: Standard deviation, above 0.
        seed: Of the run.
        params: Which of the weights that train; all of them if None.

    Raises:
        HftuneError: The pattern fits nothing.
    """

    def __init__(
        self, model: nn.Module, std: float, *, seed: int, params: Pattern | None = None
    ) -> None:
        self.std, self.seed = std, seed
        if params is not None:
            check_pattern("regularization.weight_noise.params", params, model)
        self.parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if params is None or is_named(name, params)
        }

    def step_cost(self) -> StepCost:
        """Return the cost of a copy of the weights that get noise, to come back to."""
        noisy = [parameter for parameter in self.parameters.values() if parameter.requires_grad]
        return StepCost(other_weights=sum(one.numel() * one.element_size() for one in noisy))

    @contextmanager
    def in_place(self, step: int) -> Iterator[None]:
        """Add noise to the weights for a while, and restore the exact weights even after an error.

        Args:
            step: Optimizer steps that are done.
        """
        noisy = {name: p for name, p in self.parameters.items() if p.requires_grad}
        kept = {name: parameter.detach().clone() for name, parameter in noisy.items()}
        try:
            with torch.no_grad():
                for name, parameter in noisy.items():
                    noise = normal_like(parameter, self.seed, "weight_noise", step, name)
                    parameter.add_(noise, alpha=self.std)
            yield
        finally:
            with torch.no_grad():
                for name, parameter in noisy.items():
                    parameter.copy_(kept[name])


class GradientNoise(TrainerCallback):
    """Adds ``N(0, eta / (1 + step)^gamma)`` to the gradient of each step, after clipping.

    Args:
        model: What trains has ``requires_grad``.
        eta: Variance at the first step, above 0; 0.01, 0.3 or 1 in the paper.
        gamma: How fast it fades; 0.55 in the paper.
        seed: Of the run.
    """

    def __init__(self, model: nn.Module, eta: float, *, gamma: float = 0.55, seed: int) -> None:
        self.eta, self.gamma, self.seed = eta, gamma, seed
        self.parameters = dict(model.named_parameters())

    def step_cost(self) -> StepCost:
        """Return no cost: the noise of one parameter at a time is little."""
        return StepCost()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add noise to the gradients before the optimizer reads them."""
        std = math.sqrt(self.eta / (1 + state.global_step) ** self.gamma)
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                step = int(state.global_step)
                noise = normal_like(parameter.grad, self.seed, "gradient_noise", step, name)
                parameter.grad.add_(noise, alpha=std)
