# SPDX-License-Identifier: Apache-2.0
"""Draw a model's new weights as the recipe says; the pretrained ones are left as they are.

New is what the checkpoint lacks, and what the recipe asks to have drawn anew. Layers from the top:
Zhang et al., "Revisiting Few-sample BERT Fine-tuning", 2021, arXiv:2006.05987.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hftune.core.console import warn
from hftune.core.errors import HftuneError, RunError
from hftune.core.optimization_rows import SchemeRow
from hftune.initialization import SCHEMES
from hftune.initialization.lsuv import scale_to_unit_variance
from hftune.initialization.schemes import draw, set_prior
from hftune.initialization.section import Drawing, InitializationSection
from hftune.models.module_names import Pattern, all_names, check_pattern, is_named, layer_names


@dataclass(frozen=True, kw_only=True)
class InitializationContext:
    """Facts about the run that initialization may use.

    Attributes:
        seed: Of every draw.
        counts: Rows of each class; None where classes do not exclude each other.
        batch: Makes a batch of training rows, on the model's device.
    """

    seed: int
    counts: Sequence[int] | None
    batch: Callable[[], Mapping[str, Any]]


def check_initialization(section: InitializationSection, skeleton: PreTrainedModel) -> None:
    """Refuse a section that does not fit a model, before its weights are loaded.

    Raises:
        HftuneError: A pattern means nothing, or there are not so many layers.
    """
    modules_drawn_anew(section, skeleton)
    for number, rule in enumerate(section.rules):
        key = f"initialization.rules[{number}]"
        check_pattern(f"{key}.params", rule.params, skeleton)
        if not any(_takes(skeleton, names, rule, rule.params) for names in all_names(skeleton)):
            needs = {"vectors": "a vector, such as a bias, that it names itself"}
            wanted = needs.get(SCHEMES[rule.name].draws, "a weight of two dimensions or more")
            raise HftuneError(f"{key}: {rule.name} draws {wanted}; {rule.params!r} means none")


def initialize(
    model: PreTrainedModel,
    missing: Iterable[str],
    section: InitializationSection,
    context: InitializationContext,
) -> list[str]:
    """Draw the new weights; leave the global random generators as they were.

    Args:
        model: The loaded model, before a method changes it.
        missing: Names of parameters that the checkpoint lacks.
        section: What the recipe says.
        context: Facts about the run.

    Returns:
        Names of the pretrained parameters that were drawn anew.

    Raises:
        RunError: A scheme or a rule has nothing to draw.
    """
    with torch.random.fork_rng():
        torch.manual_seed(context.seed)
        modules = modules_drawn_anew(section, model)
        for module in modules:
            _draw_anew(model, module)
        anew = [name for name, _ in model.named_parameters() if _is_below(name, modules)]
        lacking = set(missing)
        new = [
            names
            for names in all_names(model)
            if names[0] in anew or all(name in lacking for name in names)
        ]
        drawings = assign(model, new, section)
        for name, drawing in drawings.items():
            _draw(model, name, drawing, context)
        undrawn = [name for name in anew if model.get_parameter(name).isnan().any()]
        if undrawn:
            raise RunError(
                f"initialization: the model's own code does not draw {', '.join(undrawn[:3])}",
                hint="name a scheme for it under initialization.rules",
            )
        _warn_of_dead_weights(drawings)
        scaled = [name for name, drawing in drawings.items() if _row(drawing).scales_on_batch]
        if scaled:
            layers = [name.rpartition(".")[0] for name in scaled]
            scale_to_unit_variance(model, layers, context.batch())
    return anew


def modules_drawn_anew(section: InitializationSection, model: PreTrainedModel) -> list[str]:
    """Return the names of the pretrained modules that the recipe wants anew, none inside another.

    Raises:
        HftuneError: There are not so many layers, or a pattern means no module.
    """
    found: list[str] = []
    if (count := section.reinit_top_layers) is not None:
        layers = layer_names(model)
        if count > len(layers):
            raise HftuneError(
                f"initialization.reinit_top_layers: {count}, and {type(model).__name__} has "
                f"{len(layers)} layers"
            )
        found += layers[-count:]
    if (pattern := section.reinit_modules) is not None:
        check_pattern("initialization.reinit_modules", pattern, model)
        holders = [n for n, part in model.named_modules() if any(True for _ in part.parameters())]
        singles: list[Pattern] = [pattern] if isinstance(pattern, str) else [[p] for p in pattern]
        for single in singles:
            named = [name for name in holders if name and is_named(name, single)]
            if not named:
                raise HftuneError(
                    f"initialization.reinit_modules: {single!r} means parameters and no module",
                    hint="name the module that holds them",
                )
            found += named
    whole = dict.fromkeys(found)
    return [name for name in whole if not _is_below(name, [n for n in whole if n != name])]


def assign(
    model: nn.Module, new: Iterable[list[str]], section: InitializationSection
) -> dict[str, Drawing]:
    """Return the scheme of each new parameter that a scheme draws, and not the model's own code.

    Args:
        model: Whose parameters they are.
        new: All names of each new parameter.
        section: What the recipe says; the first rule that fits a parameter has it.

    Raises:
        RunError: A scheme or a rule has nothing to draw.
    """
    chosen: dict[str, Drawing] = {}
    idle: dict[int, str] = dict.fromkeys(range(len(section.rules)), "the checkpoint has it all")
    for names in new:
        for number, rule in enumerate(section.rules):
            if not _takes(model, names, rule, rule.params):
                continue
            if names[0] not in chosen:
                chosen[names[0]] = rule
                idle.pop(number, None)
            elif number in idle:
                idle[number] = "a rule before it has it all"
        if section.name is not None and names[0] not in chosen and _takes(model, names, section):
            chosen[names[0]] = section
    hint = "pretrained weights are drawn anew by reinit_top_layers or reinit_modules"
    if idle:
        number, why = next(iter(idle.items()))
        raise RunError(
            f"initialization.rules[{number}]: nothing new that "
            f"{section.rules[number].params!r} means: {why}",
            hint=hint,
        )
    if section.name is not None and section not in chosen.values():
        raise RunError(f"initialization: {section.name} has nothing new to draw", hint=hint)
    return chosen


def _takes(
    model: nn.Module, names: list[str], drawing: Drawing, pattern: Pattern | None = None
) -> bool:
    """Tell whether a scheme draws a parameter; a vector's own name must fit the pattern."""
    meant = pattern is None or any(is_named(name, pattern) for name in names)
    if not meant or drawing.name is None:
        return False
    kind = _row(drawing).draws
    if model.get_parameter(names[0]).ndim >= 2:
        return kind != "vectors"
    itself = pattern is not None and not any(
        is_named(name.rpartition(".")[0], pattern) for name in names
    )
    return itself and kind != "matrices"


def _draw_anew(model: PreTrainedModel, name: str) -> None:
    """Let the model's own code draw a module; parameters that it skips are NaN afterwards."""
    module = model.get_submodule(name)
    for parameter in module.parameters():
        vars(parameter).pop("_is_hf_initialized", None)  # else Transformers passes over it
        with torch.no_grad():
            parameter.fill_(float("nan"))
    owner = model
    for holder, part in model.named_modules():
        if isinstance(part, PreTrainedModel) and name.startswith(f"{holder}."):
            owner = part
    module.apply(owner._init_weights)


def _draw(model: nn.Module, name: str, drawing: Drawing, context: InitializationContext) -> None:
    parameter = model.get_parameter(name)
    if not parameter.is_floating_point():
        raise RunError(f"initialization: {name} is quantized and cannot be drawn")
    if _row(drawing).draws != "vectors":
        return draw(parameter, drawing, model.get_submodule(name.rpartition(".")[0]))
    if context.counts is None or len(context.counts) != len(parameter):
        raise RunError(
            f"initialization: {drawing.name} is for the bias of a head whose classes exclude each "
            f"other, not for {name}"
        )
    return set_prior(parameter, context.counts)


def _warn_of_dead_weights(drawings: Mapping[str, Drawing]) -> None:
    """Warn if several weights are equal: the layers below get equal gradients, or none."""
    equal = [name for name, drawing in drawings.items() if _row(drawing).equal_weights]
    weights = [name for name in equal if name.endswith("weight")]
    if len(weights) > 1:
        warn(
            f"initialization: {' and '.join(weights[:3])} begin with one value everywhere; where "
            "one follows the other, their units stay equal or never learn"
        )


def _row(drawing: Drawing) -> SchemeRow:
    assert drawing.name is not None
    return SCHEMES[drawing.name]


def _is_below(name: str, modules: Iterable[str]) -> bool:
    return name.startswith(tuple(f"{module}." for module in modules))
