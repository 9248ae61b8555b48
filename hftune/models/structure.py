# SPDX-License-Identifier: Apache-2.0
"""Inspect a loaded model: positions, modules that the checkpoint lacks, an unused pooler."""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

#: Model types whose position numbers start after the padding index.
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")


def num_positions(config: PreTrainedConfig) -> int | None:
    """Return the largest number of tokens in a row; None if positions have no limit.

    Example:
        >>> from transformers import BertConfig, RobertaConfig
        >>> num_positions(BertConfig()), num_positions(RobertaConfig(max_position_embeddings=514))
        (512, 512)
    """
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and config.model_type in OFFSET_POSITIONS:
        return positions - 2
    return positions


def new_modules(model: nn.Module, missing_keys: Iterable[str]) -> tuple[str, ...]:
    """Return the largest modules of which the checkpoint has no parameter.

    For a module with some missing parameters, the module that directly holds them is returned.

    Args:
        model: The loaded model.
        missing_keys: Names of parameters, as ``from_pretrained`` reports them.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        >>> new_modules(model, ["1.weight", "1.bias"])
        ('1',)
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
    """Return the Transformers model inside the wrappers of PEFT or a launcher."""
    return next(part for part in model.modules() if isinstance(part, PreTrainedModel))


def unused_pooler(model: PreTrainedModel) -> str | None:
    """Return the name of the pooler of an encoder; None if it has none."""
    for name, _ in model.base_model.named_children():
        if name == "pooler" and model.base_model.pooler is not None:
            return f"{model.base_model_prefix}.{name}"
    return None
