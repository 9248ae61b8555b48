# SPDX-License-Identifier: Apache-2.0
"""No work on padding: a batch's tokens are packed on entry to the layers, and unpacked on exit.

Batches stay as they are, padded, so tasks, losses, embeddings and heads see nothing of it. Between
the first layer and the last the hidden states are ``(1, N, D)``, the ``N`` tokens of all rows one
after the other, and attention runs row by row. What a layer computes for a token is the same but
for rounding; at padding the hidden states are zero in place of numbers that nobody reads.

It stands on three seams of Transformers: an attention function and a mask function of our own,
registered under :data:`NAME`, and hooks on the layers. In place of a mask the layers are given a
:class:`Packing`. A forward pass with a cache, or one that returns all hidden states or attention
maps, runs padded, as with ``sdpa``.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from inspect import signature
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
)

from hftune.core.errors import HftuneError, first_line
from hftune.core.packed_attention import Packing, attend
from hftune.core.parts import layer_names

NAME = "hftune_padding_free"
#: Row lengths on which a model is tried before it is trusted.
TRIED = (7, 12, 3)
#: How far its answers may be apart then, as a share of the largest.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6, torch.float16: 2e-2, torch.bfloat16: 1e-1}

#: Fields of configs that let a pass go by the first or the last layer.
LAYERS_LEFT_OUT = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")

#: Whether the forward pass that is under way may be packed.
_wanted: ContextVar[bool] = ContextVar("padding_free", default=False)


@contextmanager
def padding_free(model: nn.Module, wanted: bool | None) -> Iterator[str | None]:
    """Let a model work on tokens alone while the context lasts.

    Args:
        model: With or without an adapter.
        wanted: None where that is exact, True to insist, False for padded batches.

    Yields:
        Why batches stay padded; None if they do not.

    Raises:
        HftuneError: It is insisted on and cannot be.
    """
    reason, take_out = None, None
    if wanted is not False:
        try:
            take_out = _put_in(model)
        except PackingError as error:
            reason = str(error)
    if reason and wanted:
        raise HftuneError(
            f"data.padding_free: {reason}",
            hint="leave it out, and batches are padded; training.train_sampling_strategy: "
            "group_by_length makes padding short",
        )
    try:
        yield reason
    finally:
        if take_out is not None:
            take_out()


def may_be_packed(model: nn.Module) -> bool:
    """Tell whether a model is of a kind that may be packed, as far as shapes tell."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    try:
        return isinstance(base, PreTrainedModel) and bool(_layers(base))
    except PackingError:
        return False


class PackingError(Exception):
    """A model's layers do not take packed rows, or answer otherwise; says why."""


def _put_in(model: nn.Module) -> Callable[[], None]:
    """Hook a model up, try it, and return what undoes it."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel):
        raise PackingError(f"{type(base).__name__} is no model of Transformers")
    layers, seen = _layers(base), list[Packing]()
    undo = ExitStack()

    def hook(add: Callable[..., Any], function: Any, **options: Any) -> None:
        undo.callback(add(function, **options).remove)

    def look(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.extend(filter(None, [_packing(args, kwargs)]))

    try:
        batch = _rows_to_try(base)
        padded = _answers(base, batch)
        hook(base.register_forward_pre_hook, _begin, with_kwargs=True)
        hook(base.register_forward_hook, _end, always_call=True)
        for layer in layers:
            hook(layer.register_forward_pre_hook, _before, with_kwargs=True)
        hook(layers[0].register_forward_pre_hook, _enter, with_kwargs=True)
        hook(layers[-1].register_forward_hook, _leave, with_kwargs=True)
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, make_mask)
        undo.callback(base.set_attn_implementation, "sdpa")
        base.set_attn_implementation(NAME)
        looking = layers[-1].register_forward_pre_hook(look, with_kwargs=True)
        undo.callback(looking.remove)
        packed = _answers(base, batch)
        looking.remove()
        if not seen:
            raise ValueError("they are given no mask that could say where tokens are")
        apart, largest = float((packed - padded).abs().max()), float(padded.abs().max())
        if not apart <= TOLERANCE.get(padded.dtype, 1e-1) * largest:
            raise ValueError(f"their answers are {apart:.1e} apart, the largest is {largest:.1e}")
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        undo.close()
        why = f"{type(base).__name__}'s layers do not take packed rows: {first_line(error)}"
        raise PackingError(why) from error
    return undo.close


def _layers(base: PreTrainedModel) -> list[nn.Module]:
    """Return the layers of a model of a kind that may be packed."""
    name, attention = type(base).__name__, base.config.get_text_config()._attn_implementation
    if base.config.is_encoder_decoder:
        raise PackingError(f"{name} has a decoder that looks at an encoder")
    if any(base.config.to_dict().get(key) for key in LAYERS_LEFT_OUT):
        raise PackingError(f"{name} leaves out layers by chance")
    if attention != "sdpa":
        raise PackingError(f"{name} has {attention} attention, and only sdpa's is packed")
    try:
        return [base.get_submodule(layer) for layer in layer_names(base)]
    except HftuneError as error:
        raise PackingError(error.message) from error


def make_mask(**asked: Any) -> Any:
    """Return a :class:`Packing` where the pass under way can be packed, else the mask of ``sdpa``.

    Args:
        asked: What Transformers hands a mask function; see :func:`sdpa_mask`.
    """
    here: Tensor | None = asked["attention_mask"]  # as wide as q_length, where that is kv_length
    known = not asked["use_vmap"] and asked["q_length"] == asked["kv_length"]
    if here is None or not known or not _wanted.get() or bool(here.all()):
        return sdpa_mask(**asked)
    rule = asked["mask_function"]
    both_ways = bool(rule(0, 0, torch.tensor(0), torch.tensor(1)))
    if both_ways and not bool((here[:, 0] | ~here.any(1)).all()):
        return sdpa_mask(**asked)  # an encoder's head reads the first place, be it padding
    whole = asked | {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return Packing(
        here=here,
        places=here.flatten().nonzero()[:, 0],
        lengths=[length for length in here.sum(1).tolist() if length],
        causal=rule is causal_mask_function,
        make_mask=cast(Callable[[], Tensor], partial(sdpa_mask, **whole)),
        patterned=rule not in (causal_mask_function, bidirectional_mask_function),
    )


def _begin(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """See whether a forward pass can be packed: nothing kept, nothing shown of its inside."""
    known = signature(model.forward)
    given = known.bind_partial(*args, **kwargs).arguments
    given = {**given, **given.get("kwargs", {})}
    config = cast(PreTrainedModel, model).config
    shown = ("output_attentions", "output_hidden_states")
    inside = any(given.get(name, getattr(config, name, False)) for name in shown)
    cached = given.get("use_cache") or given.get("past_key_values") is not None
    _wanted.set(not (inside or cached))
    if _wanted.get() and "use_cache" in known.parameters:
        kwargs["use_cache"] = False
    return args, kwargs


def _end(model: nn.Module, args: Any, output: Any) -> None:
    _wanted.set(False)


def _before(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """Pack what stands beside the hidden states: positions and their embeddings."""
    packing = _packing(args, kwargs)
    if packing is None:
        return None

    def packed(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(packed, value))
        if isinstance(value, dict):
            return {key: packed(part) for key, part in value.items()}
        rows = (1, packing.here.shape[0])
        if isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] == packing.width:
            return packing.pack(value) if value.shape[0] in rows else value
        return value

    hidden, *rest = args if args else (None,)
    args = (hidden, *map(packed, rest)) if args else ()
    return args, {k: v if k == "hidden_states" else packed(v) for k, v in kwargs.items()}


def _enter(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """Pack the hidden states before the first layer."""
    packing = _packing(args, kwargs)
    if packing is None:
        return None
    if args:
        return (packing.pack(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": packing.pack(kwargs["hidden_states"])}


def _leave(layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """Unpack them after the last."""
    packing = _packing(args, kwargs)
    if packing is None:
        return None
    if isinstance(output, tuple):
        return (packing.unpack(output[0]), *output[1:])
    return packing.unpack(output)


def _packing(args: Any, kwargs: dict[str, Any]) -> Packing | None:
    return next((one for one in (*args, *kwargs.values()) if isinstance(one, Packing)), None)


def _rows_to_try(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return rows of several lengths, padded on the right."""
    config = model.config.get_text_config()
    padding = max(getattr(config, "pad_token_id", None) or 0, 0)
    here = torch.arange(max(TRIED)) < torch.tensor(TRIED)[:, None]
    ids = torch.arange(here.numel()).view(here.shape) % config.vocab_size
    ids[ids == padding] = (padding + 1) % config.vocab_size
    ids[~here] = padding
    return {"input_ids": ids.to(model.device), "attention_mask": here.long().to(model.device)}


def _answers(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits of the rows, or of their tokens, without dropout."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits: Tensor = model(**batch)[0]
    finally:
        model.train(training)
    return logits[batch["attention_mask"].bool()] if logits.dim() == 3 else logits
