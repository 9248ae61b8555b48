# SPDX-License-Identifier: Apache-2.0
"""What is asked of a model, or done to its modules, from outside."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from hftune.core.errors import HftuneError

#: Encoders call their stack so; a decoder's (OPT) or another tower's (Gemma 3) has another name.
STACK_NAMES = ("encoder", "transformer")
#: Models whose positions start behind the padding index.
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")


def num_positions(config: PreTrainedConfig) -> int | None:
    """Return how many tokens a row may have for the model; None where positions have no end."""
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and config.model_type in OFFSET_POSITIONS:
        return positions - 2
    return positions


def new_modules(model: nn.Module, missing_keys: Iterable[str]) -> tuple[str, ...]:
    """Return the largest modules whose every parameter the checkpoint lacks.

    A parameter that is missing beside loaded ones stands for the module that holds it.

    Args:
        model: The loaded model.
        missing_keys: Names of parameters, as ``from_pretrained`` reports them.
    """
    missing = set(missing_keys)
    names: set[str] = set()
    for key in missing:
        if "." not in key:
            continue
        module = key.rpartition(".")[0]
        while "." in module and _is_new(model, module.rpartition(".")[0], missing):
            module = module.rpartition(".")[0]
        names.add(module)
    return tuple(sorted(names))


def _is_new(model: nn.Module, name: str, missing: set[str]) -> bool:
    parameters = model.get_submodule(name).named_parameters(prefix=name)
    return all(key in missing for key, _ in parameters)


def keep_unpacked(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for a CPU.

    On processors with AVX512-BF16 it packs them at the first evaluation, and version 0.50 unpacks
    them wrongly when a state dict is taken, as every checkpoint does: the base is ruined silently.
    """
    layers: list[Any] = [part for part in model.modules() if type(part).__name__ == "Linear4bit"]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False


def pretrained_in(model: nn.Module) -> PreTrainedModel:
    """Return the Transformers model inside of what PEFT or a launcher wrapped."""
    return next(part for part in model.modules() if isinstance(part, PreTrainedModel))


def unused_pooler(model: PreTrainedModel) -> str | None:
    """Return the name of the encoder's own pooler, if it has one."""
    for name, _ in model.base_model.named_children():
        if name == "pooler" and model.base_model.pooler is not None:
            return f"{model.base_model_prefix}.{name}"
    return None


def pool_by_mean(model: PreTrainedModel) -> None:
    """Let an encoder's classification head read the mean over all tokens.

    Heads read the first position of the last hidden states. Hooks put the mean over the positions
    of the attention mask in its place, on the way out of the layer stack, so that every head and
    pooler runs unchanged. A model that knows ``config.classifier_pooling`` does it by itself.

    Raises:
        HftuneError: The model is no encoder with one stack of layers.
    """
    if "classifier_pooling" in model.config.to_dict():
        model.config.classifier_pooling = "mean"
        return
    encoder = model.base_model
    stack = _layer_stack(model)
    signature = inspect.signature(encoder.forward)
    mask: list[Tensor | None] = [None]

    def remember_mask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        mask[0] = signature.bind_partial(*args, **kwargs).arguments.get("attention_mask")

    def mean_into_first(module: nn.Module, args: Any, output: Any) -> Any:
        pooled = masked_mean(output[0], mask[0])
        hidden = torch.cat([pooled[:, None], output[0][:, 1:]], dim=1)
        return _with_last(output, hidden)

    encoder.register_forward_pre_hook(remember_mask, with_kwargs=True)
    stack.register_forward_hook(mean_into_first)


def masked_mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over the tokens, ``(B, T, D)`` to ``(B, D)``.

    Args:
        hidden: Hidden states, shape ``(B, T, D)``.
        mask: 1 for a token and 0 for padding, shape ``(B, T)``; all tokens when None.
    """
    if mask is None:
        return hidden.mean(1)
    weights = mask.to(hidden.dtype)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def _with_last(output: Any, hidden: Tensor) -> Any:
    """Put new last hidden states in, also where they end ``hidden_states``: DeBERTa reads those."""
    old = output[0]

    def swap(part: Any) -> Any:
        if part is old:
            return hidden
        if isinstance(part, tuple) and part and part[-1] is old:
            return (*part[:-1], hidden)
        return part

    if isinstance(output, tuple):
        return tuple(map(swap, output))
    for key, part in list(output.items()):
        output[key] = swap(part)
    return output


def _layer_stack(model: PreTrainedModel) -> nn.Module:
    """The one child of the encoder that holds its list of layers."""
    stacks = [
        child
        for name, child in model.base_model.named_children()
        if name in STACK_NAMES and any(isinstance(part, nn.ModuleList) for part in child.children())
    ]
    if len(stacks) != 1 or model.config.is_encoder_decoder:
        raise HftuneError(
            f"model.classifier_pooling: mean is made for encoders, and {type(model).__name__} "
            "has no single stack of layers with a head on its first position"
        )
    return stacks[0]
