# SPDX-License-Identifier: Apache-2.0
"""Penalties on the weights, added to the loss once an optimizer step.

- ``l1`` and ``l2`` together are the elastic net: Zou and Hastie, "Regularization and variable
  selection via the elastic net", 2005.
- ``l2_sp``: Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer Learning with
  Convolutional Networks", 2018, arXiv:1802.01483.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class WeightPenalty:
    """``l1 * sum |w| + l2 * sum w² + l2_sp / 2 * sum (w - w0)²`` over the trainable weights.

    The first two count weights of two dimensions or more: biases and norms are small by nature. The
    third counts all that was pretrained, and keeps a copy of it.

    Args:
        model: With the weights that the run begins with; what trains has ``requires_grad``.
        new_modules: What was not pretrained, and has nothing to stay close to.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        l1: float | None = None,
        l2: float | None = None,
        l2_sp: float | None = None,
        new_modules: Iterable[str] = (),
    ) -> None:
        self.l1, self.l2, self.l2_sp = l1 or 0.0, l2 or 0.0, l2_sp or 0.0
        self.parameters = dict(model.named_parameters())
        new = tuple(f"{name}." for name in new_modules)
        self.start: dict[str, Tensor] = {}
        if self.l2_sp:
            self.start = {
                name: parameter.detach().clone()
                for name, parameter in self.parameters.items()
                if not name.startswith(new)
            }

    def __call__(self) -> Tensor:
        """Return the penalty of the weights as they are, shape ``()``."""
        terms: list[Tensor] = []
        for name, parameter in self.parameters.items():
            if not parameter.requires_grad:  # a schedule may freeze and unfreeze
                continue
            weight = parameter if parameter.dtype == torch.float64 else parameter.float()
            if self.l1 and weight.ndim >= 2:
                terms.append(self.l1 * weight.abs().sum())
            if self.l2 and weight.ndim >= 2:
                terms.append(self.l2 * weight.square().sum())
            if name in self.start:
                start = self.start[name].to(weight)  # the model may have moved to a device
                self.start[name] = start
                terms.append(self.l2_sp / 2 * (weight - start).square().sum())
        return torch.stack(terms).sum() if terms else torch.zeros(())
