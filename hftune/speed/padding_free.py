# SPDX-License-Identifier: Apache-2.0
"""Skip padding: pack the tokens of a batch before the first layer and unpack them after the last.

Batches stay padded, so tasks, losses, embeddings and heads need no change. Between the first layer
and the last, hidden states have the shape ``(1, N, D)``: the ``N`` tokens of all rows, one row
after the other. Attention stays within a row. Layers compute the same for a token, up to rounding.
At padding the hidden states are zero; nothing reads them there.

The code uses three seams of Transformers: its own attention function and mask function, registered
under :data:`NAME`, and hooks on the layers. The layers receive a :class:`Packing` in place of a
mask. A forward pass that uses a cache, or returns hidden states or attention maps, runs padded with
``sdpa``.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
)

from hftune.core.errors import HftuneError, first_line
from hftune.models.layer_stack import (
    StackError,
    answers,
    base_of,
    check_alike,
    is_closed,
    layers_of,
    rows_to_try,
    takes,
)
from hftune.speed.packed_attention import Packing, attend

NAME = "hftune_padding_free"

#: Whether the current forward pass may be packed.
_wanted: ContextVar[bool] = ContextVar("padding_free", default=False)


@contextmanager
def padding_free(model: nn.Module, wanted: bool | None) -> Iterator[str | None]:
    """Let the layers of a model skip padding while the context lasts.

    Args:
        model: With or without an adapter.
        wanted: None to pack if results are the same, True to insist, False for padded batches.

    Yields:
        The reason why batches stay padded; None if they are packed.

    Raises:
        HftuneError: ``wanted`` is True and the model cannot be packed.
    """
    reason, take_out = None, None
    if wanted is not False:
        try:
            take_out = _put_in(model)
        except StackError as error:
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


def never_packed(model: nn.Module) -> str | None:
    """Return why models of this kind stay padded; None if only a trial with weights can tell.

    Args:
        model: With weights or without.
    """
    try:
        _packable(base_of(model))
    except StackError as error:
        return str(error)
    return None


def _put_in(model: nn.Module) -> Callable[[], None]:
    """Add the hooks, try the model, and return a function that removes the hooks."""
    base = base_of(model)
    layers, seen = _packable(base), list[Packing]()
    undo = ExitStack()

    def hook(add: Callable[..., Any], function: Any, **options: Any) -> None:
        undo.callback(add(function, **options).remove)

    def look(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.extend(filter(None, [_packing(args, kwargs)]))

    try:
        batch = rows_to_try(base)
        padded = answers(base, batch)
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
        packed = answers(base, batch)
        looking.remove()
        if not seen:
            raise ValueError("they are given no mask that could say where tokens are")
        check_alike(packed, padded)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        undo.close()
        why = f"{type(base).__name__}'s layers do not take packed rows: {first_line(error)}"
        raise StackError(why) from error
    return undo.close


def _packable(base: PreTrainedModel) -> list[nn.Module]:
    """Return the layers of a model; raise :class:`StackError` if its kind cannot be packed."""
    layers = layers_of(base)
    attention = base.config.get_text_config()._attn_implementation
    if attention != "sdpa":
        raise StackError(
            f"{type(base).__name__} has {attention} attention, and only sdpa's is packed"
        )
    return layers


def make_mask(**asked: Any) -> Any:
    """Return a :class:`Packing` if the current pass can be packed, else the mask of ``sdpa``.

    Args:
        asked: The arguments of a mask function of Transformers; see :func:`sdpa_mask`.
    """
    here: Tensor | None = asked["attention_mask"]  # shape (B, q_length), if q_length is kv_length
    known = not asked["use_vmap"] and asked["q_length"] == asked["kv_length"]
    if here is None or not known or not _wanted.get() or bool(here.all()):
        return sdpa_mask(**asked)
    rule = asked["mask_function"]
    both_ways = bool(rule(0, 0, torch.tensor(0), torch.tensor(1)))
    if both_ways and not bool((here[:, 0] | ~here.any(1)).all()):
        return sdpa_mask(
            **asked
        )  # the head of an encoder reads the first position, even if that is padding
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
    """Find out if a forward pass can be packed."""
    _wanted.set(is_closed(cast(PreTrainedModel, model), args, kwargs))
    if _wanted.get() and "use_cache" in takes(model):
        kwargs["use_cache"] = False
    return args, kwargs


def _end(model: nn.Module, args: Any, output: Any) -> None:
    _wanted.set(False)


def _before(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """Pack the other inputs of a layer: position ids and position embeddings."""
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
    """Unpack the hidden states after the last layer."""
    packing = _packing(args, kwargs)
    if packing is None:
        return None
    if isinstance(output, tuple):
        return (packing.unpack(output[0]), *output[1:])
    return packing.unpack(output)


def _packing(args: Any, kwargs: dict[str, Any]) -> Packing | None:
    return next((one for one in (*args, *kwargs.values()) if isinstance(one, Packing)), None)
