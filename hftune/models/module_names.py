# SPDX-License-Identifier: Apache-2.0
"""Find the parts of a model by name: layers from bottom to top, embeddings, head, and by pattern.

The config of a model tells the number of its layers, so the layer stack is the list of modules with
this length. Patterns mean the same as PEFT's ``target_modules``.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from hftune.core.errors import HftuneError

#: A regular expression for a whole name, or a list of whole names or last parts of names.
Pattern = str | list[str]
Place = int | Literal["embeddings", "head", "other"]

#: Config fields with the number of decoder layers of an encoder-decoder.
DECODER_LAYERS = ("decoder_layers", "num_decoder_layers")


def layer_names(model: PreTrainedModel) -> list[str]:
    """Return the names of the layers from bottom to top; the decoder comes after the encoder.

    Raises:
        HftuneError: The model has no stack of layers, or several.
    """
    config = model.config.get_text_config()
    fields = config.to_dict()
    lengths = {
        getattr(config, "num_hidden_layers", None)
    }  # a convolutional model has stages instead
    lengths |= {fields[key] for key in DECODER_LAYERS if key in fields}
    stacks = [(name, part) for name, part in _outer_lists(model) if len(part) in lengths]
    if len(stacks) != (2 if model.config.is_encoder_decoder else 1):
        raise HftuneError(
            f"{type(model).__name__} has no plain stack of layers that could be counted",
            hint="name its modules instead: freeze_modules, train_modules",
        )
    return [f"{name}.{index}" for name, stack in stacks for index in range(len(stack))]


def places(model: PreTrainedModel, layers: Iterable[str]) -> dict[str, Place]:
    """Return the place of each parameter: number of its layer, embeddings, head, or other.

    A head that shares its weights with the embeddings counts as embeddings.

    Args:
        model: The model.
        layers: Names from :func:`layer_names`; empty if layers do not matter.
    """
    numbers = {f"{name}.": number for number, name in enumerate(layers)}
    embeddings = tuple(f"{name}." for name in _embedding_modules(model))
    heads = tuple(f"{name}." for name in _head_modules(model))

    def place(names: list[str]) -> Place:
        for start, number in numbers.items():
            if names[0].startswith(start):
                return number
        if any(name.startswith(embeddings) for name in names):
            return "embeddings"
        return "head" if any(name.startswith(heads) for name in names) else "other"

    return {names[0]: place(names) for names in all_names(model)}


def all_names(model: nn.Module) -> list[list[str]]:
    """Return the names of each parameter; a parameter that modules share has several.

    Example:
        >>> shared = nn.Sequential(one := nn.Linear(2, 2, bias=False), one)
        >>> all_names(shared)
        [['0.weight', '1.weight']]
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def is_named(name: str, pattern: Pattern) -> bool:
    """Tell whether a pattern fits a parameter or a module that contains it.

    Example:
        >>> is_named("layer.0.query.weight", ["query"]), is_named("layer.0.query.weight", "query")
        (True, False)
    """
    return any(_fits(part, pattern) for part in _with_holders(name))


def check_pattern(option: str, pattern: Pattern, model: nn.Module) -> None:
    """Refuse a pattern that fits no parameter.

    Args:
        option: The recipe key for the error.
        pattern: A regular expression or a list of names.
        model: The model with the parameters.

    Raises:
        HftuneError: The text is no regular expression, or the pattern or a name in it fits nothing.

    Example:
        >>> check_pattern("method.target_modules", ["0"], nn.Sequential(nn.Linear(1, 1)))
    """
    names = [name for aliases in all_names(model) for name in aliases]
    for single in [pattern] if isinstance(pattern, str) else [[item] for item in pattern]:
        try:
            found = any(is_named(name, single) for name in names)
        except re.error as error:
            raise HftuneError(f"{option}: {pattern!r} is no regular expression: {error}") from error
        if not found:
            shown = single if isinstance(single, str) else single[0]
            last = {part for name in names for part in name.split(".") if not part.isdigit()}
            regular = "; a regular expression must fit a whole name, such as .*\\.bias"
            raise HftuneError(
                f"{option}: {shown!r} fits nothing in {type(model).__name__}",
                hint=f"parts of its names: {', '.join(sorted(last))}"
                + (regular if isinstance(single, str) else ""),
            )


def _fits(name: str, pattern: Pattern) -> bool:
    if isinstance(pattern, str):
        return re.fullmatch(pattern, name) is not None
    return any(name == item or name.endswith(f".{item}") for item in pattern)


def _with_holders(name: str) -> Iterator[str]:
    """Yield ``a``, ``a.b`` and ``a.b.c`` for ``a.b.c``."""
    for match in re.finditer(r"\.|$", name):
        yield name[: match.start()]


def _outer_lists(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    """Yield the lists of modules that are not inside another list."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield f"{prefix}{name}", child
        else:
            yield from _outer_lists(child, f"{prefix}{name}.")


def _embedding_modules(model: PreTrainedModel) -> set[str]:
    """Return all embedding tables, and the largest module around the token table without layers."""
    try:
        tokens: nn.Module | None = model.get_input_embeddings()
    except NotImplementedError:  # a model of images
        tokens = None
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {name for name, part in modules.items() if isinstance(part, nn.Embedding)}
    for name in [name for name, part in modules.items() if part is tokens and part is not None]:
        holders = [part for part in _with_holders(name) if not _holds_a_list(modules[part])]
        found.add(holders[0])
    return found


def _head_modules(model: PreTrainedModel) -> list[str]:
    """Return the modules outside the base model; T5 has no base model: the output layer."""
    children = dict(model.named_children())
    if model.base_model is not model:
        return [name for name in children if name != model.base_model_prefix]
    output: nn.Module | None = model.get_output_embeddings()
    return [name for name, part in children.items() if part is output]


def _holds_a_list(module: nn.Module) -> bool:
    return any(isinstance(part, nn.ModuleList) for part in module.modules())
