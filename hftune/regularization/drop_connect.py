# SPDX-License-Identifier: Apache-2.0
"""DropConnect: single weights of linear layers are dropped in a forward pass.

``y = x @ (mask * W / (1 - p)).T + b`` with a new mask for each forward pass; the bias stays. Wan et
al., "Regularization of Neural Networks using DropConnect", 2013.
"""

from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from hftune.core.cost import StepCost
from hftune.core.errors import HftuneError
from hftune.models.module_names import Pattern, check_pattern, is_named
from hftune.regularization.attached import Attached, Handle


class DropConnect(Attached):
    """Drops weights of linear layers that train.

    Args:
        model: Its weights train as they are; no adapter.
        p: Share of the weights that is dropped, above 0 and below 1.
        modules: Which linear layers; all of them if None.

    Raises:
        HftuneError: The pattern fits nothing, or no linear layer that trains.
    """

    def __init__(self, model: nn.Module, p: float, modules: Pattern | None = None) -> None:
        super().__init__()
        self.p = p
        if modules is not None:
            check_pattern("regularization.drop_connect.modules", modules, model)
        self.layers = [
            module
            for name, module in model.named_modules()
            if type(module) is nn.Linear  # a quantized one, or an adapter's, is none
            and module.weight.requires_grad
            and (modules is None or is_named(name, modules))
        ]
        if not self.layers:
            raise HftuneError(
                f"regularization.drop_connect: no linear layer of {type(model).__name__} trains"
                + ("" if modules is None else f" that {modules!r} fits")
            )

    def step_cost(self) -> StepCost:
        """Return the cost of a mask and a masked weight a layer; see :class:`Attached`."""
        weights = [layer.weight for layer in self.layers]
        return StepCost(extra_bytes=sum(2 * one.numel() * one.element_size() for one in weights))

    def attach(self) -> list[Handle]:
        """Give the layers another forward; see :class:`Attached`."""
        for layer in self.layers:
            layer.forward = partial(dropped, layer, self.p)  # type: ignore[method-assign]
        return [_OwnForward(layer) for layer in self.layers]


def dropped(layer: nn.Linear, p: float, inputs: Tensor) -> Tensor:
    """Return the output of a linear layer; while it trains, some of its weights are dropped.

    Args:
        layer: Whose weight and bias count.
        p: Share of the weights that is dropped.
        inputs: Shape ``(..., in_features)``.
    """
    active = layer.training and layer.weight.requires_grad  # a schedule may freeze it
    return F.linear(inputs, F.dropout(layer.weight, p, active), layer.bias)


@dataclass
class _OwnForward:
    layer: nn.Linear

    def remove(self) -> None:
        """Let the class's own forward count again."""
        del self.layer.forward
