# SPDX-License-Identifier: Apache-2.0
"""How much a model keeps for its backward pass, counted on a forward pass without weights.

On the meta device tensors have shapes and no numbers. What autograd saves there is what it saves in
a training step of that shape, whatever the architecture and the method.
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
#: Attention whose kernels keep queries, keys, values and the result, and no scores.
FUSED = ("sdpa", "flash_attention_2", "flex_attention")


def kept_bytes(model: nn.Module, rows: int, length: int, *, on_cpu: bool = False) -> int | None:
    """Return the bytes that a training step in float32 keeps, up to the head of a language model.

    Args:
        model: On the meta device, with the method applied.
        rows: Of the micro-batch.
        length: Tokens of each row.
        on_cpu: Whether attention with dropout keeps its scores, as it does on a CPU.

    Returns:
        None where the model does not run without numbers, or has a decoder beside an encoder.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel) or base.config.is_encoder_decoder:
        return None
    try:
        base = deepcopy(base).float().train()
        with _counted_attention(base, on_cpu):
            return _kept(base, torch.zeros(rows, length, dtype=torch.long, device="meta"))
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, HftuneError):
        return None  # whatever reads a number that is not there


def _kept(base: Any, ids: Tensor) -> int:
    """Count each storage once, the weights' own not at all."""
    weights = {_key(tensor) for tensor in (*base.parameters(), *base.buffers())}
    storages: dict[int, Any] = {}  # held, so that no address comes twice

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
    """Have fused attention keep what its kernels do; the meta device would multiply it out."""
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
    """Keeps what flash attention keeps, or what is multiplied out; has no numbers to do it with."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scores: bool) -> Tensor:
        rows, heads, length, _ = query.shape
        taken = query.new_empty(rows, length, heads, value.shape[-1])
        # Shares, what is dropped of them, and what is left.
        square = [query.new_empty(rows, heads, length, length) for _ in range(3 * scores)]
        ctx.save_for_backward(query, key, value, taken, *square)
        return taken

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        raise NotImplementedError("nothing is computed")
