# SPDX-License-Identifier: Apache-2.0
"""Layer-sequential unit variance: outputs of variance 1, layer after layer, on one batch.

Mishkin and Matas, "All you need is a good init", 2016, arXiv:1511.06422: orthogonal weights, each
then divided by the standard deviation of its layer's output until the variance is close to 1.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hftune.core.errors import RunError

TOLERANCE = 0.1
MOST_TRIES = 10


def scale_to_unit_variance(
    model: nn.Module, layers: Collection[str], batch: Mapping[str, Any]
) -> None:
    """Scale the weights of layers, in the order of the forward pass.

    Args:
        model: Their weights are orthogonal already. It is looked at in evaluation mode.
        layers: Names of modules with a ``weight``.
        batch: What the model takes, on its device.

    Raises:
        RunError: The batch does not reach a layer, or its output is the same everywhere.
    """
    training = {part for part in model.modules() if part.training}
    model.eval()
    try:
        order = list(_variances(model, layers, batch))
        if missed := sorted(set(layers) - set(order)):
            raise RunError(f"initialization: lsuv: the rows do not reach {', '.join(missed)}")
        for name in order:
            _scale(model, name, batch)
    finally:
        for part in training:
            part.training = True


def _scale(model: nn.Module, name: str, batch: Mapping[str, Any]) -> None:
    weight = model.get_submodule(name).get_parameter("weight")
    for _ in range(MOST_TRIES):
        variance = _variances(model, [name], batch)[name]
        if abs(variance - 1) < TOLERANCE:
            return
        if not 0 < variance < float("inf"):
            raise RunError(f"initialization: lsuv: the output of {name} has variance {variance:g}")
        with torch.no_grad():
            weight.div_(variance**0.5)
    raise RunError(f"initialization: lsuv: {name} has no variance of 1 after {MOST_TRIES} tries")


def _variances(
    model: nn.Module, layers: Collection[str], batch: Mapping[str, Any]
) -> dict[str, float]:
    """Return the variance of each layer's output, in the order of the forward pass."""
    found: dict[str, float] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            found[name] = float(output.float().var())

        return hook

    hooks = [model.get_submodule(n).register_forward_hook(remember(n)) for n in layers]
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found
