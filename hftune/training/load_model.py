# SPDX-License-Identifier: Apache-2.0
"""Load the model of a plan, initialize new weights and apply the method."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import set_seed

from hftune.core.console import say
from hftune.initialization.initialize import InitializationContext, initialize
from hftune.methods import method_row
from hftune.models.adapter import loaded_weights
from hftune.models.fingerprint import fingerprint
from hftune.models.keep_layers import with_layers
from hftune.models.load import load_weights, quantization_config, was_pooled_by_mean
from hftune.models.pooling import pool_by_mean
from hftune.models.structure import new_modules, unused_pooler
from hftune.training.plan.arguments import weight_dtype
from hftune.training.plan.plan import Plan
from hftune.training.plan.pretrained import model_without_weights

#: Rows on which lsuv measures the outputs of new layers.
LSUV_ROWS = 32


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to train.

    Attributes:
        model: The model; trained parameters have ``requires_grad``.
        new_modules: Names of modules that the checkpoint lacks, or that are initialized again.
        base_fingerprint: Fingerprint of the base weights of an adapter; None for a whole model.
    """

    model: nn.Module
    new_modules: tuple[str, ...] = ()
    base_fingerprint: dict[str, str] | None = None


def load_model(plan: Plan) -> LoadedModel:
    """Load the weights of a plan and apply the method.

    New modules are initialized with the recipe's seed, so that equal recipes start equal.
    """
    set_seed(plan.settings.arguments.seed)
    base, method = None, plan.objective.method
    model, missing = _load_base(plan)
    if method_row(plan.settings.recipe.method.name).needs_base:
        base = fingerprint(loaded_weights(model, missing))
    if plan.settings.recipe.initialization.is_set:
        missing = [*missing, *_initialize(plan, model, missing)]
    new = _new_modules(plan, model, missing)
    return LoadedModel(method.apply(model, plan.context(new)), new, base)


def _load_base(plan: Plan) -> tuple[Any, list[str]]:
    """Return the base model, and the names of the weights that its checkpoint lacks."""
    section, pretrained = plan.settings.recipe.model, plan.pretrained
    model, missing = load_weights(
        plan.objective.task.auto_model,
        pretrained.path,
        config=pretrained.full_config or pretrained.config,
        dtype=weight_dtype(plan.settings.recipe, plan.settings.arguments),
        revision=section.revision,
        attn_implementation=section.attention,
        quantization_config=quantization_config(base_quantization(plan)),
    )
    if section.keep_layers is not None:
        model = with_layers(model, pretrained.config, section.keep_layers)
    return model, missing


def _new_modules(plan: Plan, model: Any, missing: Sequence[str]) -> tuple[str, ...]:
    """Return the names of modules that the checkpoint lacks; set the pooling of the recipe."""
    section = plan.settings.recipe.model
    new = new_modules(model, missing)
    if new:
        say(f"not out of the checkpoint: {', '.join(new)}")
    if section.classifier_pooling == "mean":
        pool_by_mean(model)
    if was_pooled_by_mean(plan.pretrained.path, section.revision):
        unused = unused_pooler(model)
        if unused and unused not in new:
            say(
                f"{unused} trains too: this checkpoint was made with mean pooling and never used it"
            )
            new = (*new, unused)
    return new


def _initialize(plan: Plan, model: Any, missing: Sequence[str]) -> list[str]:
    """Initialize new weights; return the names of pretrained weights that are drawn again."""
    task = plan.objective.task

    def batch() -> dict[str, Any]:
        rows, collate = plan.splits.train.dataset, task.collator(plan.pretrained.processor, model)
        made = collate([rows[index] for index in range(min(LSUV_ROWS, len(rows)))])
        if not model.config.is_encoder_decoder:
            made.pop("labels")
        return {key: value.to(model.device) for key, value in made.items()}

    counts = plan.class_counts().tolist() if task.labels_compete else None
    context = InitializationContext(seed=plan.settings.arguments.seed, counts=counts, batch=batch)
    return initialize(model, missing, plan.settings.recipe.initialization, context)


def base_quantization(plan: Plan) -> dict[str, Any] | None:
    """Return the recipe's quantization, without heads and poolers, because those train."""
    given = plan.settings.recipe.model.quantization
    if given is None:
        return None
    skeleton = model_without_weights(plan.settings, plan.objective.task, plan.pretrained.config)
    heads = {name for name, _ in skeleton.named_children()} - {skeleton.base_model_prefix}
    spared = [*(given.get("llm_int8_skip_modules") or ()), *sorted(heads)]
    spared.append(r"(.*\.)?pooler")  # a pattern matches from the start of the full name
    return {**given, "llm_int8_skip_modules": list(dict.fromkeys(spared))}


def parameter_counts(model: nn.Module | None) -> dict[str, int]:
    """Return the numbers of trained parameters and of all parameters.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> layer.bias = layer.bias.requires_grad_(False)
        >>> parameter_counts(layer)
        {'trainable_parameters': 6, 'parameters': 9}
    """
    sizes = {
        id(parameter): (_size(module, name, parameter), parameter.requires_grad)
        for module in (model.modules() if model else ())
        for name, parameter in module.named_parameters(recurse=False)
    }
    return {
        "trainable_parameters": sum(size for size, trains in sizes.values() if trains),
        "parameters": sum(size for size, _ in sizes.values()),
    }


def _size(module: Any, name: str, parameter: Any) -> int:
    """Return the number of weights in a parameter, also if it is packed or sharded."""
    if type(module).__name__ == "Linear4bit" and name == "weight":  # packed, perhaps sharded too
        return int(module.in_features * module.out_features)
    # Between steps DeepSpeed leaves an empty tensor in place of a sharded parameter.
    return int(getattr(parameter, "ds_numel", parameter.numel()))
