# SPDX-License-Identifier: Apache-2.0
"""Puts bottleneck adapters on a model: the part that PEFT calls."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from peft.utils.other import match_target_against_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from hftune.methods.bottleneck.config import BottleneckConfig
from hftune.methods.bottleneck.layer import NO_MERGE, BottleneckLayer, Reads
from hftune.methods.bottleneck.sites import find_sites, layer_kinds, partner

WIDTH_FIELDS = ("hidden_size", "d_model", "n_embd", "dim")


class BottleneckModel(BaseTuner):
    """A model with bottleneck adapters; made by ``get_peft_model`` and its like.

    Args:
        model: The base model.
        config: What the adapters are.
        adapter_name: The name of the first.
        low_cpu_mem_usage: Whether its weights are made on the meta device.
    """

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer

    def _prepare_adapter_config(
        self, peft_config: PeftConfig, model_config: dict[str, object]
    ) -> PeftConfig:
        """Find the places that the config leaves open; the saved config then names them."""
        assert isinstance(peft_config, BottleneckConfig)
        if peft_config.target_modules is None:
            sites = find_sites(self.model, peft_config.placement, model_config)
            peft_config.target_modules = sites.target_modules
            peft_config.input_modules = sites.input_modules
        return peft_config

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        assert isinstance(peft_config, BottleneckConfig)
        names = [name for name, _ in model.named_modules() if name]
        if not any(self._check_target_module_exists(peft_config, name) for name in names):
            raise ValueError(_no_target(peft_config, model))

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> Any:
        """Tell whether a module is a target, ``layers_to_transform`` with patterns included."""
        assert isinstance(peft_config, BottleneckConfig)
        found = check_target_module_exists(peft_config, key)
        if found and isinstance(peft_config.target_modules, str):
            return _is_chosen_layer(peft_config, key)
        return found

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, BottleneckConfig)
        layer = target if isinstance(target, BottleneckLayer) else BottleneckLayer(target)
        base = layer.get_base_layer()
        added = self._width(base, current_key)
        read, reads = added, _reads(peft_config, base)
        if reads == "sublayer":
            name = self._first_module(peft_config, current_key)
            first = self.model.get_submodule(name)
            layer.listen_to(first, name)
            read = _in_features(first) or added
        elif reads == "input":
            read = _in_features(base) or added
        layer.update_layer(adapter_name, peft_config, reads, (read, added))
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _first_module(self, config: BottleneckConfig, key: str) -> str:
        """Return the name of the module whose input the adapter at ``key`` reads."""
        wanted = config.input_modules
        assert wanted is not None
        names = [name for name, _ in self.model.named_modules() if _matches(wanted, name)]
        return partner(key, names)

    def _width(self, module: nn.Module, key: str) -> int:
        """Return the last dimension of the output of a module.

        Raises:
            ValueError: It cannot be known.
        """
        if isinstance(module, Conv1D):
            return int(module.nf)
        features = getattr(module, "out_features", None)
        if isinstance(features, int):
            return features
        if _is_norm(module):
            return next(module.parameters()).shape[-1]
        config = self.get_model_config(self.model)
        config = config.get("text_config") or config
        hidden = next((config[name] for name in WIDTH_FIELDS if config.get(name)), None)
        if hidden is None or next(module.children(), None) is None:
            raise ValueError(
                f"target_modules: {key} is a {type(module).__name__}; an adapter goes onto a "
                "linear layer, a norm, or a whole sublayer of a Transformer"
            )
        return int(hidden)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        if isinstance(child, BottleneckLayer):
            setattr(parent, child_name, new_module)  # the base layer was never changed
        else:
            super()._replace_module(parent, child_name, new_module, child)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: object, **kwargs: object) -> Iterator[None]:
        """Refuse arguments that PEFT would ignore."""
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "adapter_names: bottleneck adapters cannot be chosen row by row; set_adapter "
                "chooses for the whole batch"
            )
        yield

    def _check_merge_allowed(self) -> None:
        raise ValueError(NO_MERGE)

    def unmerge_adapter(self) -> NoReturn:
        """Refuse: nothing was ever merged."""
        raise ValueError(NO_MERGE)

    def add_weighted_adapter(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse: the sum of two adapters is no adapter of the same width."""
        raise ValueError(
            "bottleneck adapters cannot be averaged into one: they are not linear in their "
            "weights. Several can be active at once, and then add up: set_adapter(['one', 'other'])"
        )

    def unload(self) -> nn.Module:
        """Return the base model as it was."""
        for module in self.model.modules():
            if isinstance(module, BottleneckLayer):
                module.stop_listening()
        model: nn.Module = super().unload()
        return model


def _reads(config: BottleneckConfig, module: nn.Module) -> Reads:
    if config.placement == "parallel":
        return "sublayer" if config.input_modules else "input"
    return "norm" if config.placement == "pfeiffer" and _is_norm(module) else "output"


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and next(module.children(), None) is None


def _in_features(module: nn.Module) -> int | None:
    """Return the input width of a linear layer; None for anything else."""
    if isinstance(module, Conv1D):
        return int(module.nx)
    features = getattr(module, "in_features", None)
    return features if isinstance(features, int) else None


def _matches(wanted: str | Iterable[str], name: str) -> bool:
    """Tell whether a name is meant by a pattern or by a list of endings, as PEFT reads them."""
    if isinstance(wanted, str):
        return match_target_against_key(wanted, name) is not None
    return any(name == end or name.endswith(f".{end}") for end in wanted)


def _is_chosen_layer(config: BottleneckConfig, key: str) -> bool:
    """Tell whether the number of a module's layer is in ``layers_to_transform``."""
    chosen = config.layers_to_transform
    if chosen is None:
        return True
    patterns = config.layers_pattern or r"[^.]+"
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        number = re.match(rf"(?:.*?\.)??{pattern}\.(\d+)\.", key)
        if number:
            return int(number[1]) in ([chosen] if isinstance(chosen, int) else chosen)
    return False


def _no_target(config: BottleneckConfig, model: nn.Module) -> str:
    wanted = config.target_modules
    asked = wanted if isinstance(wanted, str) else ", ".join(sorted(wanted or ()))
    layers = (
        "" if config.layers_to_transform is None else f" in layers {config.layers_to_transform}"
    )
    return (
        f"target_modules: {type(model).__name__} has nothing named {asked}{layers}; the layers of "
        f"its blocks are {', '.join(layer_kinds(model)[:40])}"
    )
