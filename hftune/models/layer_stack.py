# SPDX-License-Identifier: Apache-2.0
"""Find the layer stack of a model, and try a changed model on a few rows."""

from collections.abc import Callable, Mapping
from functools import cache
from inspect import Parameter, Signature, signature
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hftune.core.errors import HftuneError
from hftune.models.module_names import layer_names

#: Lengths of the rows on which a changed model is tried.
TRIED = (7, 12, 3)
#: Largest difference of logits, as a share of the largest logit.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6, torch.float16: 2e-2, torch.bfloat16: 1e-1}
#: Config fields that let a forward pass skip the first or the last layer.
LAYERS_LEFT_OUT = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")


class StackError(Exception):
    """The layers of a model cannot be changed; the message is the reason."""


def base_of(model: nn.Module) -> PreTrainedModel:
    """Return the Transformers model without its adapter.

    Raises:
        StackError: The model is not one of Transformers.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel):
        raise StackError(f"{type(base).__name__} is no model of Transformers")
    return base


def layers_of(base: PreTrainedModel) -> list[nn.Module]:
    """Return the layers that every forward pass runs, from bottom to top.

    Raises:
        StackError: The model has no such stack.
    """
    name = type(base).__name__
    if base.config.is_encoder_decoder:
        raise StackError(f"{name} has a decoder that looks at an encoder")
    if any(base.config.to_dict().get(key) for key in LAYERS_LEFT_OUT):
        raise StackError(f"{name} leaves out layers by chance")
    try:
        return [base.get_submodule(layer) for layer in layer_names(base)]
    except HftuneError as error:
        raise StackError(error.message) from error


def rows_to_try(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return input ids and mask of rows of several lengths, padded on the right."""
    config = model.config.get_text_config()
    padding = max(getattr(config, "pad_token_id", None) or 0, 0)
    here = torch.arange(max(TRIED)) < torch.tensor(TRIED)[:, None]
    ids = torch.arange(here.numel()).view(here.shape) % config.vocab_size
    ids[ids == padding] = (padding + 1) % config.vocab_size
    ids[~here] = padding
    return {"input_ids": ids.to(model.device), "attention_mask": here.long().to(model.device)}


def answers(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits of the rows, or of their tokens, without dropout."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits: Tensor = model(**batch)[0]
    finally:
        model.train(training)
    return logits[batch["attention_mask"].bool()] if logits.dim() == 3 else logits


def check_alike(one: Tensor, other: Tensor) -> None:
    """Raise :class:`ValueError` if logits differ by more than rounding.

    Example:
        >>> check_alike(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.00001]))
        >>> check_alike(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
        Traceback (most recent call last):
        ValueError: their answers are 1.0e+00 apart, the largest is 3.0e+00
    """
    apart, largest = float((one - other).abs().max()), float(other.abs().max())
    if not apart <= TOLERANCE.get(other.dtype, 1e-1) * largest:
        raise ValueError(f"their answers are {apart:.1e} apart, the largest is {largest:.1e}")


def is_closed(model: PreTrainedModel, args: Any, kwargs: dict[str, Any]) -> bool:
    """Tell whether a forward pass returns no hidden states or attention maps and uses no cache."""
    given = inputs_of(model, args, kwargs)
    config = model.config
    shown = ("output_attentions", "output_hidden_states")
    inside = any(given.get(name, getattr(config, name, False)) for name in shown)
    return not (inside or given.get("use_cache") or given.get("past_key_values") is not None)


def inputs_of(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs of a forward pass by name."""
    bound = _signature(type(model).forward).bind_partial(model, *args, **kwargs)
    given: dict[str, Any] = dict(bound.arguments)
    _, *names = given
    more: dict[str, Any] = given.get("kwargs", {})
    return {name: given[name] for name in names if name != "kwargs"} | more


def takes(model: nn.Module) -> Mapping[str, Parameter]:
    """Return the parameters of the forward function of a model, ``self`` first."""
    return _signature(type(model).forward).parameters


@cache
def _signature(forward: Callable[..., Any]) -> Signature:
    return signature(forward)
