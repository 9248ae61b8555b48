# SPDX-License-Identifier: Apache-2.0
"""The layer that PEFT puts around a module: its weight and bias with their differences."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.func import functional_call

from hftune.methods.diff_pruning.config import DiffPruningConfig
from hftune.methods.diff_pruning.difference import Difference

#: Parameter of the base layer -> where its differences are.
PLACES = {"weight": "diffp_weight", "bias": "diffp_bias"}
#: Parameter, positions in it when flat, what was there before.
Replaced = tuple[str, Tensor, Tensor]


class DiffPruningLayer(nn.Module, BaseTunerLayer):
    """A module that runs with other weights than its own.

    Any module goes whose parameters are ``weight`` and perhaps ``bias``: linear, convolution,
    embedding, norm. Several active adapters add up in their order.

    Args:
        base_layer: The module.
    """

    adapter_layer_names = tuple(PLACES.values())

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.diffp_weight = nn.ModuleDict()
        self.diffp_bias = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._replaced: list[Replaced] = []

    def update_layer(self, adapter_name: str, config: DiffPruningConfig) -> None:
        """Add an adapter; it is zero."""
        base: Any = self.get_base_layer()
        self.diffp_weight[adapter_name] = Difference(base.weight, config)
        if config.include_bias and base._parameters.get("bias") is not None:
            self.diffp_bias[adapter_name] = Difference(base.bias, config)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def differences(self, adapter_name: str) -> dict[str, Difference]:
        """Return parameter name to difference of one adapter."""
        found = {}
        for parameter, place in PLACES.items():
            adapters = getattr(self, place)
            if adapter_name in adapters:
                found[parameter] = adapters[adapter_name]
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base layer with the differences of the active adapters."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.base_layer(*args, **kwargs)
        base: Any = self.get_base_layer()
        if self.is_table and self._is_dense():
            return self._embed(base, args[0] if args else kwargs["input"])
        changed: dict[str, Tensor] = {}
        for adapter_name in self.active_adapters:
            for parameter, difference in self.differences(adapter_name).items():
                weight = changed.get(parameter, getattr(base, parameter))
                changed[parameter] = difference(weight)
        return functional_call(base, changed, args, kwargs) if changed else base(*args, **kwargs)

    @property
    def is_table(self) -> bool:
        """Whether it looks rows up; subclasses of an embedding may do more."""
        return type(self.get_base_layer()) is nn.Embedding

    def _is_dense(self) -> bool:
        active = [name for name in self.active_adapters if name in self.diffp_weight]
        return bool(active) and not any(self.diffp_weight[name].finished for name in active)

    def _embed(self, base: nn.Embedding, ids: Tensor) -> Tensor:
        """Look up tokens; only the rows that occur get gates, few of a large table."""
        if ids.is_meta:  # without numbers the rows are unknown, and their number is at most this
            rows, positions = ids.flatten()[: base.num_embeddings], ids
        else:
            rows, positions = ids.unique(return_inverse=True)
        table = base.weight[rows]
        for adapter_name in self.active_adapters:
            if adapter_name in self.diffp_weight:
                table = self.diffp_weight[adapter_name](table, rows)
        return F.embedding(positions, table)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the differences into the base, and remember the replaced weights.

        Args:
            safe_merge: Whether to look for numbers that are not finite first.
            adapter_names: Which adapters; the active ones when None.

        Raises:
            ValueError: ``safe_merge`` found one; nothing has changed in this layer.
        """
        base = self.get_base_layer()
        for adapter_name in check_adapters_to_merge(self, adapter_names):
            changed = {
                parameter: difference(getattr(base, parameter).data, noise=False)
                for parameter, difference in self.differences(adapter_name).items()
            }
            if safe_merge and not all(new.isfinite().all() for new in changed.values()):
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {adapter_name} seems to be "
                    "broken"
                )
            for parameter, new in changed.items():
                old = getattr(base, parameter).data
                places = (new != old).flatten().nonzero().flatten()
                before = old.flatten()[places].clone()
                self._replaced.append((parameter, places, before))
                old.copy_(new)
            if changed:
                self.merged_adapters.append(adapter_name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the base's own numbers back, to the bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        base = self.get_base_layer()
        while self._replaced:
            parameter, places, before = self._replaced.pop()
            getattr(base, parameter).data.view(-1)[places] = before.to(places.device)
        self.merged_adapters.clear()

    def __repr__(self) -> str:
        return f"diff_pruning.{super().__repr__()}"
