# SPDX-License-Identifier: Apache-2.0
"""Count the bytes that a model saves for its backward pass, in a forward pass without weights.

On the meta device tensors have shapes but no numbers. Autograd saves the same tensors there as in a
training step of that shape, for any architecture and method.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from hftune.core.errors import HftuneError

NAME = "hftune_counting"
#: Attention implementations that save queries, keys, values and the result, but no scores.
FUSED = ("sdpa", "flash_attention_2", "flex_attention")


def kept_bytes(model: nn.Module, rows: int, length: int, *, on_cpu: bool = False) -> int | None:
    """Return the bytes that a training step in float32 saves, without the head of a language model.

    Args:
        model: The model on the meta device, with the method applied.
        rows: Rows of the micro-batch.
        length: Tokens of each row.
        on_cpu: Whether attention with dropout saves its scores, as on a CPU.

    Returns:
        The bytes; None if the model needs numbers to run, or is an encoder with a decoder.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel) or base.config.is_encoder_decoder:
        return None
    try:
        base = deepcopy(base).float().train()
        with _counted_attention(base, on_cpu):
            return _kept(base, torch.zeros(rows, length, dtype=torch.long, device="meta"))
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, HftuneError):
        return None  # the model reads numbers, and the meta device has none


def _kept(base: Any, ids: Tensor) -> int:
    """Sum the sizes of the saved storages, each once, without those of the weights."""
    weights = {_key(tensor) for tensor in (*base.parameters(), *base.buffers())}
    storages: dict[int, Any] = {}  # kept alive, so that no address is used again

    def keep(tensor: Tensor) -> Tensor:
        if _key(tensor) not in weights:
            storages[_key(tensor)] = tensor.untyped_storage()
        return tensor

    is_language_model = base.get_output_embeddings() is not None
    part = base.base_model if is_language_model else base
    base.config.use_cache = False
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        part(input_ids=ids, attention_mask=torch.ones_like(ids))
    return sum(storage.nbytes() for storage in storages.values())


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def _counted_attention(base: PreTrainedModel, on_cpu: bool) -> Iterator[None]:
    """Let attention save the tensors of its fused kernels; the meta device has no such kernels."""
    if base.config.get_text_config()._attn_implementation not in FUSED:
        yield
        return
    AttentionInterface.register(NAME, partial(_attend, on_cpu=on_cpu))
    AttentionMaskInterface.register(NAME, lambda **asked: None)
    base.set_attn_implementation(NAME)
    yield


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    *,
    on_cpu: bool,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Tensor, None]:
    taken: Any = _Fused.apply
    return taken(query, key, value, on_cpu and dropout > 0), None


class _Fused(torch.autograd.Function):
    """Attention without numbers: it only saves the tensors of flash, or of plain, attention."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scores: bool) -> Tensor:
        rows, heads, length, _ = query.shape
        taken = query.new_empty(rows, length, heads, value.shape[-1])
        # Attention weights, dropout mask, and weights after dropout.
        square = [query.new_empty(rows, heads, length, length) for _ in range(3 * scores)]
        ctx.save_for_backward(query, key, value, taken, *square)
        return taken

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        raise NotImplementedError("nothing is computed")
