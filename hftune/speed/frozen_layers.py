# SPDX-License-Identifier: Apache-2.0
"""Skip the frozen layers below the first trained layer if their output is known.

Their output for a row depends only on its tokens, so the digest of the tokens is its key. If the
output of all rows of a forward pass is known, it replaces the embeddings, and the frozen layers
return their input. Any other forward pass runs unchanged.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from hftune.models.layer_stack import StackError, inputs_of, is_closed, takes

#: Inputs that make up the key of a row; a pass with inputs other than these, mask and labels runs
#: unchanged.
TOKENS = ("input_ids", "token_type_ids")
MASK = "attention_mask"
#: Fields of a config that do not affect the layers.
NOT_COMPUTED = {"id2label", "label2id", "problem_type", "architectures", "_name_or_path"}

#: Digests of rows -> the hidden states of their tokens, one row after the other, ``(N, D)``, or of
#: their first tokens only; None if a row is unknown.
Lookup = Callable[[Sequence[bytes]], Tensor | None]


class _ReachedError(Exception):
    """Ends a forward pass early: the states are computed, and the other layers need not run."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


@dataclass(frozen=True, eq=False)
class FrozenLayers:
    """The frozen part of a model that runs before anything that trains.

    Attributes:
        base: The model of Transformers.
        layers: All its layers.
        frozen: Number of frozen layers, from the bottom.
        parts: All modules of the frozen part, including embeddings.
        embeddings: The module whose output enters the lowest layer, if any.
        returned: Length of the tuple that a layer returns; None if it returns a tensor.
        first_alone: Whether the rest of the model reads only the first token of each row.
        exact: Whether the output is the same in training mode, because there is no dropout.
    """

    base: PreTrainedModel
    layers: Sequence[nn.Module]
    frozen: int
    parts: Sequence[nn.Module]
    embeddings: nn.Module | None
    returned: int | None
    first_alone: bool = False
    exact: bool = True

    @property
    def trains(self) -> bool:
        """Whether a parameter of the frozen part trains by now."""
        own = (part._parameters.values() for part in self.parts)
        return any(one is not None and one.requires_grad for some in own for one in some)

    def is_around(self, part: nn.Module) -> bool:
        """Tell whether a module contains the layers."""
        return any(one is self.layers[-1] for one in part.modules()) and part is not self.layers[-1]

    def states(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the output of the frozen layers for all tokens or first tokens, ``(N, D)``.

        Args:
            inputs: A batch, padded on the right.
        """
        here = inputs[MASK].bool()

        def reach(states: Tensor) -> None:
            packed = states.shape[:2] != here.shape
            tokens = states[0] if packed else states[here]
            starts = here.sum(1).cumsum(0) - here.sum(1)
            raise _ReachedError(tokens[starts] if self.first_alone else tokens)

        hook = _on_leaving(self.layers, self.frozen, reach)
        try:
            self.base(**inputs)
        except _ReachedError as reached:
            return reached.states
        finally:
            hook.remove()
        raise StackError(f"{type(self.base).__name__}'s frozen layers were not reached")

    def fingerprint(self) -> str:
        """Return a digest of the weights, the config and the attention implementation."""
        config = self.base.config.to_dict()
        said = {name: config[name] for name in config.keys() - NOT_COMPUTED}
        attention = self.base.config.get_text_config()._attn_implementation
        decides = [type(self.base).__name__, attention, self.frozen, self.first_alone, said]
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode())
        names = {part: name for name, part in self.base.named_modules()}
        for part in self.parts:
            for name, value in {**part._parameters, **part._buffers}.items():
                if value is not None:
                    digest.update(f"{names[part]}.{name} {value.dtype} {value.shape}".encode())
                    raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
                    digest.update(raw.numpy().data)
        return digest.hexdigest()


@contextmanager
def skip_frozen_layers(
    frozen_layers: FrozenLayers, lookup: Lookup, *, still: bool = False
) -> Iterator[None]:
    """Skip frozen layers while the context lasts, in passes whose rows are all known.

    Args:
        frozen_layers: See :func:`hftune.speed.find_frozen_layers.find_frozen_layers`.
        lookup: Returns the states of rows.
        still: Whether frozen layers use no dropout in the other passes, either.
    """
    skipping = _Skipping(frozen_layers, lookup, still)
    lower = frozen_layers.layers[: frozen_layers.frozen]
    with ExitStack() as undo:

        def put_in(add: Callable[..., Any], function: Any, **options: Any) -> None:
            undo.callback(add(function, **options).remove)

        put_in(frozen_layers.base.register_forward_pre_hook, skipping.begin, with_kwargs=True)
        put_in(frozen_layers.base.register_forward_hook, skipping.end, always_call=True)
        if frozen_layers.embeddings is None:
            put_in(
                lower[0].register_forward_pre_hook, skipping.enter, with_kwargs=True, prepend=True
            )
        else:
            undo.enter_context(_in_place(frozen_layers.embeddings, skipping.embed))
        for layer in lower:
            undo.enter_context(_in_place(layer, skipping.hand_on))
        yield


def row_digest(*columns: Any) -> bytes:
    """Return the digest of a row: its key in a lookup.

    Args:
        columns: Token ids and, if the model reads them, token types, as int64 arrays.

    Example:
        >>> import numpy as np
        >>> ids = np.array([101, 7, 102])
        >>> row_digest(ids) == row_digest(ids.copy()), row_digest(ids) == row_digest(ids[:2])
        (True, False)
    """
    digest = hashlib.blake2b(digest_size=16)
    for column in columns:
        digest.update(column.tobytes())
    return digest.digest()


class _Skipping:
    """The hooks of a forward pass, and the states of its rows; see :func:`skip_frozen_layers`."""

    def __init__(self, frozen_layers: FrozenLayers, lookup: Lookup, still: bool) -> None:
        self.frozen_layers, self.lookup = frozen_layers, lookup
        self.states: Tensor | None = None
        #: Modules that use no dropout in passes that run unchanged.
        self.still = (
            [part for part in frozen_layers.parts if not frozen_layers.is_around(part)]
            if still
            else []
        )

    def begin(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Look up the rows of a pass; cut it to one token if only first tokens are read."""
        for part in self.still:
            part.training = False
        self.states = None
        if self.frozen_layers.trains or not is_closed(self.frozen_layers.base, args, kwargs):
            return None
        given = inputs_of(model, args, kwargs)
        self.states = self._found(given)
        if self.states is None:
            return None
        if "use_cache" in takes(model):
            given["use_cache"] = False
        if self.frozen_layers.first_alone:
            for name in (*TOKENS, MASK):
                if given.get(name) is not None:
                    given[name] = given[name][:, :1]
        return (), given

    def end(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forget the states after the pass."""
        self.states = None

    def embed(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the states in place of the embeddings' output."""
        return run(*args, **kwargs) if self.states is None else self.states

    def enter(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Replace the input of the lowest layer by the states."""
        if self.states is None:
            return None
        if args:
            return (self.states, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self.states}

    def hand_on(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return a frozen layer's input as its output."""
        if self.states is None:
            return run(*args, **kwargs)
        hidden = args[0] if args else kwargs["hidden_states"]
        returned = self.frozen_layers.returned
        return hidden if returned is None else (hidden, *[None] * (returned - 1))

    def _found(self, given: dict[str, Any]) -> Tensor | None:
        """Return the states of a pass, shape ``(B, T, D)``, with zeros at padding."""
        tensors = {name for name, value in given.items() if isinstance(value, Tensor)}
        if TOKENS[0] not in tensors or tensors - {*TOKENS, MASK, "labels"}:
            return None
        ids, mask = given[TOKENS[0]], given.get(MASK)
        here = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        if here.shape != ids.shape or bool((here[:, 1:] & ~here[:, :-1]).any()):
            return None  # positions count from the first column, so padding must be on the right
        found = self.lookup(row_digests(given, here))
        if found is None or self.frozen_layers.first_alone:
            return None if found is None else found.to(ids.device)[:, None]
        padded = found.new_zeros(*here.shape, found.shape[-1], device=ids.device)
        padded[here] = found.to(ids.device)
        return padded


def row_digests(given: dict[str, Any], here: Tensor) -> list[bytes]:
    """Return the digests of the rows of a pass.

    Args:
        given: Inputs by name.
        here: Whether there is a token, shape ``(B, T)``, bool; padding is on the right.
    """
    columns = [given[name].cpu().numpy() for name in TOKENS if given.get(name) is not None]
    lengths = here.sum(1).tolist()
    return [
        row_digest(*(column[row, :length] for column in columns))
        for row, length in enumerate(lengths)
    ]


def _on_leaving(
    layers: Sequence[nn.Module], frozen: int, reach: Callable[[Tensor], None]
) -> RemovableHandle:
    """Register a hook that receives the output of the frozen layers."""
    if frozen < len(layers):
        return layers[frozen].register_forward_pre_hook(
            lambda _, args, kwargs: reach(hidden_of(args, kwargs)), with_kwargs=True
        )
    return layers[-1].register_forward_hook(
        lambda _, args, output: reach(output[0] if isinstance(output, tuple) else output)
    )


def hidden_of(args: Any, kwargs: dict[str, Any]) -> Any:
    """Return the hidden states among the inputs of a layer.

    Example:
        >>> hidden_of((), {"hidden_states": 1, "attention_mask": 2}), hidden_of((1, 2), {})
        (1, 1)
    """
    return args[0] if args else kwargs["hidden_states"]


@contextmanager
def _in_place(module: nn.Module, stand_in: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's forward function while the context lasts; pass it to the new one."""
    run, own = module.forward, "forward" in vars(module)
    module.forward = partial(stand_in, run)
    try:
        yield
    finally:
        if own:
            module.forward = run
        else:
            del module.forward
