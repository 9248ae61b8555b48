# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth: rows pass by whole layers at random, the higher the layer the more.

Of the ``L`` layers of a stack, layer ``l`` is passed by with the probability ``rate * l / L``, and
what it adds to the rows that remain is scaled up, so that the mean is that of all rows:

``x + kept / (1 - p_l) * (layer(x) - x)``

Huang et al., "Deep Networks with Stochastic Depth", 2016, arXiv:1603.09382, equation 4; they scale
at test time instead, which would change a pretrained model.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hftune.core.cost import StepCost
from hftune.core.errors import HftuneError, RunError
from hftune.models.module_names import layer_names
from hftune.models.structure import pretrained_in
from hftune.regularization.attached import Attached, Handle


class StochasticDepth(Attached):
    """Lets rows pass by layers while the model trains; a row draws for itself.

    Args:
        model: A stack of layers, or an encoder and a decoder; adapters may be in it.
        rate: Of the last layer, in [0, 1).

    Raises:
        HftuneError: Its layers cannot be counted.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        super().__init__()
        self.rates = layer_rates(pretrained_in(model), rate)

    def step_cost(self) -> StepCost:
        """Return the cost of the difference that each layer makes; see :class:`Attached`."""
        return StepCost(hidden_copies=len(self.rates))

    def attach(self) -> list[Handle]:
        """Register hooks on the layers; see :class:`Attached`."""
        return [
            layer.register_forward_hook(_pass_by(rate), with_kwargs=True)
            for layer, rate in self.rates.items()
        ]


def layer_rates(model: PreTrainedModel, rate: float) -> dict[nn.Module, float]:
    """Return each layer with the share of rows that pass it by; a decoder begins anew.

    Raises:
        HftuneError: The layers cannot be counted.
    """
    try:
        names = layer_names(model)
    except HftuneError as error:
        raise HftuneError(f"regularization.drop_path: {error.message}") from error
    stacks: dict[str, list[str]] = {}
    for name in names:
        stacks.setdefault(name.rpartition(".")[0], []).append(name)
    return {
        model.get_submodule(name): rate * number / len(stack)
        for stack in stacks.values()
        for number, name in enumerate(stack, start=1)
    }


def _pass_by(rate: float) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if not module.training:
            return None
        before = args[0] if args else kwargs["hidden_states"]
        if isinstance(output, tuple):
            return (some_rows(before, output[0], rate), *output[1:])
        return some_rows(before, output, rate)

    return hook


def some_rows(before: Tensor, after: Tensor, rate: float) -> Tensor:
    """Return rows, some of them as before the layer; their mean is ``after``.

    Args:
        before: What came into the layer, shape ``(B, T, D)``.
        after: What came out, the same shape.
        rate: Share of the rows that pass by, in [0, 1).

    Raises:
        RunError: The shapes differ.
    """
    if before.shape != after.shape:
        raise RunError(
            "regularization.drop_path: rows cannot pass by a layer that changes their shape, from "
            f"{tuple(before.shape)} to {tuple(after.shape)}"
        )
    kept = torch.rand(len(after), device=after.device).ge(rate).to(after.dtype) / (1 - rate)
    return before + kept[:, None, None] * (after - before)
