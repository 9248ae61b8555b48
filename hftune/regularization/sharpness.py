# SPDX-License-Identifier: Apache-2.0
"""Sharpness-aware minimization: step by the gradient at a point nearby where the loss is higher.

``e = rho * g / |g|`` with the gradient ``g`` of a whole step; then ``w`` moves by the gradient at
``w + e``. With ``adaptive`` large weights may go further, so that scaling a layer up and the next
one down changes nothing: ``e = rho * T² g / |T g|`` with ``T = |w| + 0.01``.

- Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", 2021,
  arXiv:2010.01412, equation 2.
- Kwon et al., "ASAM: Adaptive Sharpness-Aware Minimization", 2021, arXiv:2102.11600, equation 7.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from hftune.core.cost import StepCost
from hftune.core.rng import RngState
from hftune.regularization.batch_norm import statistics_kept

#: What is added to a weight's size, so that a weight of 0 moves, too; as in the paper.
ETA = 0.01
#: What keeps a gradient of nothing from a division by zero.
TINY = 1e-12


class SharpnessAware(TrainerCallback):
    """Replaces the gradient of a step by that at the highest loss nearby.

    Both see the same micro-batches and the same draws of dropout.

    Args:
        model: What trains has ``requires_grad``.
        rho: How far away, in the norm of all weights that train; 0.05 in the paper, and 0.5 to 2
            where adaptive.
        adaptive: Whether the distance is measured by the size of each weight.

    Attributes:
        again: Clears the gradients and computes those of the step's micro-batches anew.
    """

    again: Callable[[], None] | None = None

    def __init__(self, model: nn.Module, rho: float, *, adaptive: bool = False) -> None:
        self.model, self.rho, self.adaptive = model, rho, adaptive
        self.rng_state: RngState | None = None

    def step_cost(self) -> StepCost:
        """Return the cost of a second pass, of the weights to come back to, and of the climb."""
        return StepCost(forward_passes=1, bytes_per_weight=4, gradient_copies=1)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember where the generators stand before the first micro-batch."""
        self.rng_state = RngState(args.device)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Climb, compute the gradient there, and come back to the very same weights."""
        if self.again is None or self.rng_state is None:
            raise RuntimeError("SAM computes each gradient twice and was not told how")
        live = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        kept = [parameter.detach().clone() for parameter in live]
        try:
            climb(live, self.rho, adaptive=self.adaptive)
            self.rng_state.restore()
            with statistics_kept(self.model):
                self.again()
        finally:
            with torch.no_grad():
                for parameter, value in zip(live, kept, strict=True):
                    parameter.copy_(value)


@torch.no_grad()
def climb(parameters: Sequence[nn.Parameter], rho: float, *, adaptive: bool) -> None:
    """Move weights to where a linear loss is highest within the distance.

    Args:
        parameters: With gradients.
        rho: The distance.
        adaptive: Whether it is measured by the size of each weight.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    scales: list[Tensor | float] = [
        parameter.abs() + ETA if adaptive else 1.0 for parameter in parameters
    ]
    scaled = [scale * gradient for scale, gradient in zip(scales, gradients, strict=True)]
    norm = torch.nn.utils.get_total_norm(scaled)
    for parameter, scale, gradient in zip(parameters, scales, scaled, strict=True):
        parameter.add_(scale * gradient * (rho / (norm + TINY)))
