# SPDX-License-Identifier: Apache-2.0
"""One place with bottleneck adapters on it.

``B`` rows, ``T`` positions, ``D`` width of the model, ``r`` width of the bottleneck.
"""

import threading
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.activations import ACT2FN

from hftune.methods.bottleneck.config import NORMAL, BottleneckConfig

#: What an adapter reads: the output of the layer it sits on; that of a norm, whose input it is then
#: added to; what goes into the layer; or into the layer that the sublayer begins with.
Reads = Literal["output", "norm", "input", "sublayer"]

NORMAL_STD = 0.01  # Houlsby et al., section 3.6
NO_MERGE = (
    "bottleneck adapters cannot be merged: what lies between their projections is not linear, so "
    "no weight of the base can hold them. Keep the adapter beside its base"
)


class InputTap:
    """A forward pre-hook that keeps the input of one module until another asks for it.

    Each thread has its own: ``torch.nn.DataParallel`` runs replicas side by side.

    Example:
        >>> tap = InputTap()
        >>> tap(nn.Identity(), (torch.ones(2),))
        >>> tap.take().tolist()
        [1.0, 1.0]
    """

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Keep the first argument."""
        self.kept[threading.get_ident()] = args[0]

    def take(self) -> Tensor:
        """Return the last input, shape ``(B, T, D)``, and let go of it."""
        return self.kept.pop(threading.get_ident())


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A layer of the base model with adapters, each ``scaling * up(dropout(f(down(h))))``.

    Several active adapters read the same and add up, so their order does not matter.

    Args:
        base_layer: The layer.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_act", "bottleneck_up")
    other_param_names = ("bottleneck_dropout", "scaling", "reads")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.tap: InputTap | None = None
        self.tapped: str | None = None
        self.tap_handle: RemovableHandle | None = None
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_act = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.reads: dict[str, Reads] = {}
        self.merged_adapters = []

    def update_layer(
        self, adapter_name: str, config: BottleneckConfig, reads: Reads, widths: tuple[int, int]
    ) -> None:
        """Add an adapter.

        Args:
            adapter_name: Its name.
            config: Its config.
            reads: What it reads.
            widths: Of what it reads and of what it is added to.
        """
        read, added = widths
        r = config.bottleneck_width(added)
        self.bottleneck_down[adapter_name] = nn.Linear(read, r)
        self.bottleneck_act[adapter_name] = ACT2FN[config.non_linearity]
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.bottleneck_up[adapter_name] = nn.Linear(r, added)
        self.scaling[adapter_name] = config.scaling or 1.0
        self.reads[adapter_name] = reads
        self.reset_parameters(adapter_name, config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def reset_parameters(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Draw the down projection anew, and make the adapter's output zero."""
        down, up = self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name]
        assert isinstance(down, nn.Linear)
        assert isinstance(up, nn.Linear)
        if config.down_init() == NORMAL:
            limit = 2 * NORMAL_STD
            nn.init.trunc_normal_(down.weight, std=NORMAL_STD, a=-limit, b=limit)
        else:
            nn.init.kaiming_uniform_(down.weight, a=5**0.5)  # as LoRA and nn.Linear do
        nn.init.zeros_(down.bias)
        if config.init_weights is not False:
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)

    def listen_to(self, module: nn.Module, name: str) -> None:
        """Keep the input of ``module`` for the adapters here; it runs before this layer.

        Raises:
            ValueError: Another adapter here reads another module.
        """
        if self.tap is None:
            self.tap, self.tapped = InputTap(), name
            self.tap_handle = module.register_forward_pre_hook(self.tap)
        elif name != self.tapped:
            raise ValueError(
                f"input_modules: another adapter here reads {self.tapped}, this one {name}"
            )

    def stop_listening(self) -> None:
        """Leave the other module as it was."""
        if self.tap_handle is not None:
            self.tap_handle.remove()
            self.tap = self.tap_handle = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the layer and add its adapters.

        Args:
            x: What the layer takes.
            args: The rest of it.
            kwargs: The rest of it.

        Returns:
            What the layer returns; of a tuple the first part is adapted.
        """
        sublayer_input = self.tap.take() if self.tap is not None else x
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        hidden = result[0] if isinstance(result, tuple) else result
        if around := self._active("norm"):
            # x is the residual sum, and hidden its norm.
            hidden = self.base_layer(self._adapted(x, hidden, around), *args, **kwargs)
        adapted = self._adapted(hidden, hidden, self._active("output"))
        adapted = self._adapted(adapted, x, self._active("input"))
        adapted = self._adapted(adapted, sublayer_input, self._active("sublayer"))
        return (adapted, *result[1:]) if isinstance(result, tuple) else adapted

    def _get_base_layer_device_and_dtype(
        self, base_layer: nn.Module
    ) -> tuple[torch.device | None, torch.dtype | None]:
        """Ask the first parameter where the layer has no weight, as a mixture of experts."""
        device, dtype = super()._get_base_layer_device_and_dtype(base_layer)  # type: ignore[no-untyped-call]
        if device is None:
            first = next(base_layer.parameters())
            return first.device, first.dtype
        return device, dtype

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: see :data:`NO_MERGE`."""
        raise ValueError(NO_MERGE)

    def unmerge(self) -> None:
        """Refuse: nothing was ever merged."""
        raise ValueError(NO_MERGE)

    def _active(self, reads: Reads) -> list[str]:
        return [name for name in self.active_adapters if self.reads.get(name) == reads]

    def _adapted(self, hidden: Tensor, read: Tensor, adapters: list[str]) -> Tensor:
        """Add the output of the adapters for ``read`` to ``hidden``, both ``(B, T, D)``."""
        for name in adapters:
            down: Any = self.bottleneck_down[name]
            inner = self.bottleneck_act[name](down(self._cast_input_dtype(read, down.weight.dtype)))
            output = self.bottleneck_up[name](self.bottleneck_dropout[name](inner))
            hidden = hidden + (output * self.scaling[name]).to(hidden.dtype)
        return hidden

    def __repr__(self) -> str:
        return "bottleneck." + super().__repr__()
