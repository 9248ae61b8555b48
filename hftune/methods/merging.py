# SPDX-License-Identifier: Apache-2.0
"""An adapter put into the weights of its base, and taken out again, where its method can."""

from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from hftune.core.errors import HftuneError
from hftune.methods import method_row


def merged(model: nn.Module, method: str) -> nn.Module:
    """Return the base model with the adapter in its weights; the given one is used up.

    Args:
        model: As :meth:`hftune.methods.method.Method.apply` made it, or as it was loaded.
        method: The name of its method.

    Raises:
        HftuneError: There is no adapter, or it cannot be merged.
    """
    adapted = _mergeable(model, method)
    if _is_quantized(adapted) and not _is_low_rank(adapted):
        raise HftuneError(
            f"method {method}: on a quantized base only LoRA is merged",
            hint="load the base without quantization, and the adapter onto that",
        )
    return merged_low_rank(adapted) if _is_quantized(adapted) else _merged(adapted, method)


def merged_low_rank(model: PeftModel) -> nn.Module:
    """Return the base model with LoRA in its weights; a quantized one comes back as floats."""
    if not _is_quantized(model):
        return cast(nn.Module, model.merge_and_unload())
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    base.dequantize()
    with torch.no_grad():
        layers: list[Any] = [part for part in model.modules() if isinstance(part, LoraLayer)]
        for layer in layers:
            weight = layer.get_base_layer().weight
            weight += layer.get_delta_weight(layer.active_adapters[0]).to(weight)
    return cast(nn.Module, model.unload())


def merge(model: nn.Module, method: str) -> None:
    """Put the adapter into the weights; :func:`unmerge` takes it out.

    Raises:
        HftuneError: As :func:`merged`, or it could not be taken out again.
    """
    adapted = _mergeable(model, method)
    if (why := method_row(method).no_unmerge) is not None:
        raise HftuneError(
            f"method {method} {why}, so it cannot be taken out again",
            hint="merge it for good, into a copy of the base",
        )
    if _is_quantized(adapted):
        raise HftuneError(
            f"method {method}: a quantized base would be rounded again by a merge",
            hint="merge it for good: the base comes back as floats",
        )
    adapted.merge_adapter()


def unmerge(model: nn.Module, method: str) -> None:
    """Take the adapter out: the weights are the base's again, except for rounding."""
    _mergeable(model, method).unmerge_adapter()


def _mergeable(model: nn.Module, method: str) -> PeftModel:
    row = method_row(method)
    if row.saves == "model":
        raise HftuneError(f"method {method} leaves a whole model; there is nothing to merge")
    if row.no_merge is not None:
        raise HftuneError(
            f"method {method} {row.no_merge}, so it cannot be merged into its base",
            hint="the adapter works beside its base, as it is saved",
        )
    if not isinstance(model, PeftModel):
        raise HftuneError(f"method {method}: {type(model).__name__} has no adapter on it")
    return model


def _is_quantized(adapted: PeftModel) -> bool:
    return bool(getattr(adapted.get_base_model(), "is_quantized", False))


def _is_low_rank(adapted: PeftModel) -> bool:
    layers = (part for part in adapted.modules() if isinstance(part, BaseTunerLayer))
    return all(isinstance(layer, LoraLayer) for layer in layers)


def _merged(adapted: PeftModel, method: str) -> nn.Module:
    try:
        return cast(nn.Module, adapted.merge_and_unload(safe_merge=True))
    except (ValueError, NotImplementedError) as error:  # no layer for it, or a sum without end
        raise HftuneError(f"method {method}: this adapter cannot be merged: {error}") from error
