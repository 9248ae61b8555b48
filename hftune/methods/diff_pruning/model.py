# SPDX-License-Identifier: Apache-2.0
"""The tuner: the modules that get a difference, the phases over all of them, and the file."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hftune.core.cost import StepCost
from hftune.methods.diff_pruning import mask_packing as packing
from hftune.methods.diff_pruning.config import DiffPruningConfig
from hftune.methods.diff_pruning.difference import Difference
from hftune.methods.diff_pruning.gates import keep_largest, num_kept
from hftune.methods.diff_pruning.layer import PLACES, DiffPruningLayer
from hftune.models.fingerprint import differing, fingerprint

MATRICES = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


class DiffPruningModel(BaseTuner):
    """Puts a :class:`DiffPruningLayer` around each target."""

    prefix = "diffp_"
    tuner_layer_cls = DiffPruningLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  as PEFT declares it
    peft_config: dict[str, Any]

    #: The share of open gates above which the penalty counts, in logs, since the pull on the gates
    #: that are left would fade with their number; the phases set it. Zero: the share itself counts.
    allowed_share = 0.0

    def differences(self, adapter_name: str = "default") -> Iterator[Difference]:
        """Yield the differences of one adapter, in the order of the modules."""
        for layer in self.model.modules():
            if isinstance(layer, DiffPruningLayer):
                yield from layer.differences(adapter_name).values()

    def num_weights(self, adapter_name: str = "default") -> int:
        """Return how many weights a difference could sit on."""
        return sum(difference.shape.numel() for difference in self.differences(adapter_name))

    def is_projected(self, adapter_name: str = "default") -> bool:
        """Tell whether the mask is fixed."""
        return all(difference.is_projected for difference in self.differences(adapter_name))

    def open_share(self, adapter_name: str = "default") -> Tensor:
        """Return the expected share of weights with an open gate, or of those that are kept."""
        counts = [
            difference.kept.sum() if difference.is_projected else difference.expected_nonzero()
            for difference in self.differences(adapter_name)
        ]
        return torch.stack(counts).sum() / self.num_weights(adapter_name)

    def penalty(self, adapter_name: str = "default") -> Tensor | None:
        """Return the penalty for the loss of an optimizer step; None once the mask is fixed."""
        config = self.peft_config[adapter_name]
        if self.is_projected(adapter_name) or config.penalty_weight == 0:
            return None
        if config.mode == "l1":
            sums = [difference.delta.abs().sum() for difference in self.differences(adapter_name)]
            counted = torch.stack(sums).sum() / self.num_weights(adapter_name)
        else:
            gates = [difference.counted_gates() for difference in self.differences(adapter_name)]
            share = torch.stack(gates).sum() / self.num_weights(adapter_name)
            allowed = self.allowed_share
            counted = (share.clamp(min=allowed) / allowed).log() if allowed else share
        penalty: Tensor = config.penalty_weight * counted
        return penalty

    def step_cost(self, adapter_name: str = "default") -> StepCost:
        """Return the bytes of the masks and of the penalty's terms for gates or differences.

        The penalty has its gradient before that of the loss, while activations are there.
        """
        number, penalized = self.num_weights(adapter_name), 0
        if self.peft_config[adapter_name].penalty_weight:
            penalized = 2 * number * torch.float32.itemsize
        return StepCost(other_weights=number, extra_bytes=penalized)

    def project(self, adapter_name: str = "default") -> int:
        """Keep the largest entries of the whole difference, ``1 - target_sparsity`` of all.

        Returns:
            How many are kept.
        """
        config = self.peft_config[adapter_name]
        differences = list(self.differences(adapter_name))
        keep = num_kept(self.num_weights(adapter_name), config.target_sparsity)
        masks = keep_largest([difference.magnitudes() for difference in differences], keep)
        for difference, mask in zip(differences, masks, strict=True):
            difference.project(mask)
        return sum(int(mask.sum()) for mask in masks)

    def finish(self, adapter_name: str = "default") -> None:
        """Leave indices and values; saved differences are sparse from here on."""
        config = self.peft_config[adapter_name]
        if config.finished:
            return
        for difference in self.differences(adapter_name):
            difference.finish()
        config.base_fingerprint = fingerprint(_base_weights(self.model, adapter_name))
        config.finished = True

    def _prepare_adapter_config(
        self, peft_config: PeftConfig, model_config: dict[str, object]
    ) -> PeftConfig:
        return peft_config  # _prepare_model has the model at hand

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        config: Any = peft_config
        if config.target_modules is None:
            config.target_modules = default_targets(model, include_norm=config.include_norm)
        self._chosen = config.target_modules

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Wrap the targets; PEFT calls it for every adapter."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        # PEFT shortens long lists to name endings, and saves whole embeddings that it finds there.
        self.peft_config[adapter_name].target_modules = self._chosen

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
        assert isinstance(peft_config, DiffPruningConfig)
        config = peft_config
        if isinstance(target, DiffPruningLayer):
            target.update_layer(adapter_name, config)
            return
        _check_target(self.model, current_key, target)
        layer = DiffPruningLayer(target)
        layer.set_adapter(self.active_adapters)
        layer.update_layer(adapter_name, config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        own = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        return {
            key: packing.pack(value) if _is_indices(key) else value for key, value in own.items()
        }

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        own: Any = config
        if own.finished:
            state_dict = _make_room(model, config, adapter_name, state_dict)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)


def default_targets(model: nn.Module, *, include_norm: bool) -> set[str]:
    """Return the names of the trunk's modules that hold a weight of their own.

    Left out are the head, the output embedding and every embedding whose weight another module
    uses too: a difference would reach only one of them.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        >>> default_targets(model, include_norm=False)
        {'0'}
    """
    shared = _shared_weights(model)
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    names = set()
    for name, module in _unwrapped(model):
        weight = module._parameters.get("weight")
        if weight is None or id(weight) in shared or not _in_trunk(model, name):
            continue
        if module is output:
            continue
        if isinstance(module, MATRICES) or (include_norm and weight.dim() == 1):
            names.add(name)
    return names


def _unwrapped(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules as they are without adapters, some of them already adapted."""
    wrapped: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(wrapped):
            continue
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            wrapped += (f"{name}.",)
        yield name, module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _in_trunk(model: nn.Module, name: str) -> bool:
    if not isinstance(model, PreTrainedModel) or model.base_model is model:
        return True
    return name.startswith(f"{model.base_model_prefix}.")


def _shared_weights(model: nn.Module) -> set[int]:
    """Return the ids of the weights that stand in more than one place of the model."""
    places = Counter(
        id(module._parameters["weight"])
        for _, module in model.named_modules(remove_duplicate=False)
        if module._parameters.get("weight") is not None
    )
    return {weight for weight, number in places.items() if number > 1}


def _check_target(model: nn.Module, name: str, target: nn.Module) -> None:
    """Raise ValueError where no difference can be added."""
    weight = target._parameters.get("weight")
    if weight is None:
        raise ValueError(
            f"{name} ({type(target).__name__}) has no weight of its own; a difference needs one"
        )
    if not weight.dtype.is_floating_point or type(weight) is not nn.Parameter:
        raise ValueError(
            f"{name} holds a quantized weight; a difference is exact only on the weight itself"
        )
    if id(weight) in _shared_weights(model):
        raise ValueError(
            f"the weight of {name} is used in another place too, which the difference would not "
            "reach; leave it out, or untie the embeddings"
        )


def _is_indices(key: str) -> bool:
    return key.endswith(".indices") and any(f".{place}." in f".{key}" for place in PLACES.values())


def _base_weights(model: nn.Module, adapter_name: str) -> list[tuple[str, Any]]:
    """Return name and weight of each adapted layer; without numbers while PEFT loads on meta."""
    return [
        (name.removeprefix("base_model.model."), layer.get_base_layer().weight)
        for name, layer in model.named_modules()
        if isinstance(layer, DiffPruningLayer) and adapter_name in layer.diffp_weight
    ]


def _make_room(
    model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Unpack the indices of a file, checked against the model, and size its tensors to them."""
    wrong = differing(config.base_fingerprint, _base_weights(model, adapter_name))
    if wrong:
        raise ValueError(
            "this base model is not the one that the difference was trained on: "
            f"{len(wrong)} of {len(config.base_fingerprint)} compared weights differ"
        )
    unpacked = dict(state_dict)
    for name, layer in model.named_modules():
        if not isinstance(layer, DiffPruningLayer):
            continue
        for parameter, difference in layer.differences(adapter_name).items():
            stem = f"{name}.{PLACES[parameter]}"
            if f"{stem}.indices" not in state_dict:
                stem = f"base_model.model.{stem}"
            packed = state_dict.get(f"{stem}.indices"), state_dict.get(f"{stem}.values")
            indices = packing.unpack(*packed, difference.shape, stem)
            unpacked[f"{stem}.indices"] = indices
            difference.resize(indices)
    return unpacked
