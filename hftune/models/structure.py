# SPDX-License-Identifier: Apache-2.0
"""What is asked of a model, or done to its modules, from outside."""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

#: Models whose positions start behind the padding index.
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")


def num_positions(config: PreTrainedConfig) -> int | None:
    """Return how many tokens a row may have for the model; None where positions have no end."""
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and config.model_type in OFFSET_POSITIONS:
        return positions - 2
    return positions


def new_modules(model: nn.Module, missing_keys: Iterable[str]) -> tuple[str, ...]:
    """Return the largest modules whose every parameter the checkpoint lacks.

    A parameter that is missing beside loaded ones stands for the module that holds it.

    Args:
        model: The loaded model.
        missing_keys: Names of parameters, as ``from_pretrained`` reports them.
    """
    missing = set(missing_keys)
    names: set[str] = set()
    for key in missing:
        if "." not in key:
            continue
        module = key.rpartition(".")[0]
        while "." in module and _is_new(model, module.rpartition(".")[0], missing):
            module = module.rpartition(".")[0]
        names.add(module)
    return tuple(sorted(names))


def _is_new(model: nn.Module, name: str, missing: set[str]) -> bool:
    parameters = model.get_submodule(name).named_parameters(prefix=name)
    return all(key in missing for key, _ in parameters)


def pretrained_in(model: nn.Module) -> PreTrainedModel:
    """Return the Transformers model inside of what PEFT or a launcher wrapped."""
    return next(part for part in model.modules() if isinstance(part, PreTrainedModel))


def unused_pooler(model: PreTrainedModel) -> str | None:
    """Return the name of the encoder's own pooler, if it has one."""
    for name, _ in model.base_model.named_children():
        if name == "pooler" and model.base_model.pooler is not None:
            return f"{model.base_model_prefix}.{name}"
    return None
