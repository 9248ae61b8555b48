# SPDX-License-Identifier: Apache-2.0
"""Find the frozen layers below the first trained layer, in a forward pass over a few rows."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hftune.core.errors import first_line
from hftune.models.layer_stack import (
    StackError,
    answers,
    base_of,
    check_alike,
    layers_of,
    rows_to_try,
)
from hftune.speed.frozen_layers import FrozenLayers, hidden_of, row_digests, skip_frozen_layers


def why_nothing_is_frozen(model: nn.Module) -> str | None:
    """Return the reason why no layer below the first trained one is frozen; None if one may be."""
    try:
        base = base_of(model)
        lowest = layers_of(base)[0]
    except StackError as error:
        return str(error)
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return "virtual tokens train, and every layer reads them"
    lower = [lowest]
    with suppress(NotImplementedError):  # some models have no table of tokens
        lower.append(base.get_input_embeddings())
    if any(one.requires_grad for part in lower for one in part.parameters()):
        return "nothing is frozen below the first layer that trains"
    return None


def find_frozen_layers(model: nn.Module) -> FrozenLayers:
    """Return the frozen layers of a model that can be skipped, after a trial on a few rows.

    Args:
        model: A model with or without an adapter; trained parameters have ``requires_grad``.

    Raises:
        StackError: There are none, or the model's output changes without them.
    """
    base = base_of(model)
    layers = layers_of(base)
    training = base.training
    try:
        frozen_layers = _watched(base, layers)
        _try(frozen_layers)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        why = f"{type(base).__name__} cannot do without its frozen layers: {first_line(error)}"
        raise StackError(why) from error
    finally:
        base.train(training)
    return frozen_layers


def _watched(base: PreTrainedModel, layers: Sequence[nn.Module]) -> FrozenLayers:
    """Run a few rows and record the modules that run before anything that trains."""
    begun: list[nn.Module] = []
    made: list[tuple[nn.Module, Any]] = []
    embeddings: list[nn.Module] = []
    frozen, before, returned = 0, 0, None
    with ExitStack() as undo:

        def enter(number: int, hidden: Any) -> None:
            nonlocal frozen, before
            if not hidden.requires_grad:
                frozen, before = number, len(begun)

        def enter_first(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            hidden = hidden_of(args, kwargs)
            embeddings.extend(part for part, output in made if output is hidden)

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            nonlocal returned
            returned = output
            enter(len(layers), output[0] if isinstance(output, tuple) else output)

        def add(hook: Any) -> None:
            undo.callback(hook.remove)

        for number, layer in enumerate(layers):
            add(layer.register_forward_pre_hook(
                lambda _, args, kwargs, number=number: enter(number, hidden_of(args, kwargs)),
                with_kwargs=True,
            ))  # fmt: skip
        add(layers[0].register_forward_pre_hook(enter_first, with_kwargs=True, prepend=True))
        add(layers[-1].register_forward_hook(leave))
        for part in base.modules():
            add(part.register_forward_pre_hook(lambda one, args: begun.append(one)))
            add(part.register_forward_hook(lambda one, args, out: made.append((one, out))))
        with torch.enable_grad():
            base.eval()(**rows_to_try(base))
    if not frozen:
        raise StackError("nothing is frozen below the first layer that trains")
    frozen_layers = FrozenLayers(
        base=base,
        layers=layers,
        frozen=frozen,
        parts=begun[:before],
        embeddings=embeddings[-1] if embeddings else None,
        returned=len(returned) if isinstance(returned, tuple) else None,
    )
    whole = [
        [part] if frozen_layers.is_around(part) else part.modules() for part in frozen_layers.parts
    ]
    parts = list(
        dict.fromkeys(chain(*whole))
    )  # the parameters of some modules are read without a call
    frozen_layers = replace(frozen_layers, parts=parts)
    alone = frozen == len(layers) and _reads_first_alone(frozen_layers)
    return replace(frozen_layers, first_alone=alone, exact=_draws_nothing(frozen_layers))


def _reads_first_alone(frozen_layers: FrozenLayers) -> bool:
    """Tell whether the output depends on the state of each row's first token only."""
    leaves: list[Tensor] = []

    def cut_off(_: nn.Module, args: Any, output: Any) -> Any:
        hidden, *more = output if isinstance(output, tuple) else (output,)
        leaves.append(hidden.detach().requires_grad_())
        return (leaves[0], *more) if isinstance(output, tuple) else leaves[0]

    hook = frozen_layers.layers[-1].register_forward_hook(cut_off)
    try:
        with torch.enable_grad():
            logits = frozen_layers.base(**rows_to_try(frozen_layers.base))[0]
            (slope,) = torch.autograd.grad(logits.float().pow(2).sum(), leaves)
    finally:
        hook.remove()
    return bool(slope[:, 0].any(1).all() and not slope[:, 1:].any())


@torch.no_grad()
def _draws_nothing(frozen_layers: FrozenLayers) -> bool:
    """Tell whether the frozen layers have the same output in training and evaluation mode."""
    batch, device = rows_to_try(frozen_layers.base), frozen_layers.base.device
    still = frozen_layers.states(batch)
    frozen_layers.base.train()
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        moved = frozen_layers.states(batch)
    frozen_layers.base.eval()
    return torch.allclose(still, moved, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def _try(frozen_layers: FrozenLayers) -> None:
    """Raise :class:`ValueError` if skipping the frozen layers changes the model's output."""
    batch = rows_to_try(frozen_layers.base)
    whole, here = answers(frozen_layers.base, batch), batch["attention_mask"].bool()
    states = frozen_layers.states(batch)
    known = dict.fromkeys(row_digests(batch, here))
    asked: list[Sequence[bytes]] = []

    def lookup(rows: Sequence[bytes]) -> Tensor:
        asked.append(rows)
        return states

    with skip_frozen_layers(frozen_layers, lookup):
        check_alike(answers(frozen_layers.base, batch), whole)
    if asked != [list(known)]:
        raise ValueError("its rows are not given to it as they are")
