# SPDX-License-Identifier: Apache-2.0
"""One vector a row out of the hidden states of its tokens."""

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hftune.core.errors import HftuneError

Pooling = Literal["cls", "mean", "last"]


def pooled(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Return the first token's state, the last one's, or the mean, ``(B, T, D)`` to ``(B, D)``.

    Padding may stand on either side.

    Args:
        hidden: Hidden states, shape ``(B, T, D)``.
        mask: 1 for a token and 0 for padding, shape ``(B, T)``.
        pooling: Which.

    Example:
        >>> hidden, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])
        >>> [pooled(hidden, mask, how).item() for how in ("cls", "mean", "last")]
        [1.0, 2.0, 3.0]
    """
    if pooling == "mean":
        return masked_mean(hidden, mask)
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    chosen = mask.int().argmax(1) if pooling == "cls" else (mask * places).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen]


def features(trunk: nn.Module, inputs: Any, pooling: Pooling, layer: int) -> Tensor:
    """Return one vector a row, float32, shape ``(B, D)``.

    Args:
        trunk: A model without a head, or the encoder of one with a decoder.
        inputs: ``input_ids``, ``attention_mask`` and what else the trunk takes.
        pooling: What becomes of the tokens.
        layer: Index of ``hidden_states``: 0 the embeddings, -1 the last layer.
    """
    if layer == -1:
        hidden = trunk(**inputs).last_hidden_state
    else:
        hidden = trunk(**inputs, output_hidden_states=True).hidden_states[layer]
    return pooled(hidden.float(), inputs["attention_mask"], pooling)


#: Names that encoders give to their stack; decoders (OPT) and image towers (Gemma 3) use others.
STACK_NAMES = ("encoder", "transformer")


def pool_by_mean(model: PreTrainedModel) -> None:
    """Let the classification head of an encoder read the mean over all tokens.

    Heads read the first position of the last hidden states. Hooks behind the layer stack replace
    this position by the mean over the positions in the attention mask, so that every head and
    pooler runs unchanged. A model with ``config.classifier_pooling`` does this by itself.

    Raises:
        HftuneError: The model is not an encoder with one stack of layers.
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
        mask: 1 for a token and 0 for padding, shape ``(B, T)``; None if there is no padding.

    Example:
        >>> hidden = torch.tensor([[[1.0], [3.0], [9.0]]])
        >>> masked_mean(hidden, torch.tensor([[1, 1, 0]]))
        tensor([[2.]])
    """
    if mask is None:
        return hidden.mean(1)
    weights = mask.to(hidden.dtype)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def _with_last(output: Any, hidden: Tensor) -> Any:
    """Replace the last hidden states, also at the end of ``hidden_states``, which DeBERTa reads."""
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
    """Return the one child of the encoder that contains its list of layers."""
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
