# SPDX-License-Identifier: Apache-2.0
"""Parameter groups: rates by layer and by name, and weight decay where it belongs.

Layer-wise rates: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification",
2018, arXiv:1801.06146, and Clark et al., "ELECTRA", 2020, arXiv:2003.10555, in the form
``rate * decay ** depth`` below the head.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from hftune.core.errors import HftuneError
from hftune.models.module_names import Pattern, Place, check_pattern, is_named, layer_names, places

#: Key of a parameter group that says what it is, in the log and in checkpoints.
NAME = "name"


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """A recipe's settings for parameter groups.

    Attributes:
        param_groups: Groups of one's own: ``params`` is a pattern, ``lr`` and ``weight_decay`` as
            in torch. The first that fits a parameter has it.
        layer_decay: What the rate of each layer is of the one above it.
    """

    param_groups: tuple[Mapping[str, Any], ...] = ()
    layer_decay: float | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is more than decayed and not decayed."""
        return bool(self.param_groups) or self.layer_decay is not None


def parameter_groups(
    model: nn.Module,
    grouping: Grouping,
    *,
    lr: float,
    weight_decay: float,
    decayed: Collection[str],
) -> list[dict[str, Any]]:
    """Return the groups: disjoint, and together all that trains.

    Args:
        model: What trains has ``requires_grad``.
        grouping: What the recipe says.
        lr: Of the head, and of all else if nothing is said.
        weight_decay: Of the parameters that decay.
        decayed: Their names; norms and biases are not among them.
    """
    scales = layer_scales(model, grouping.layer_decay) if grouping.layer_decay is not None else {}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        label, scale = scales.get(name, ("all", 1.0))
        group = {"lr": lr * scale, "weight_decay": weight_decay}
        entry = _entry_of(name, grouping.param_groups)
        if entry is not None:
            label = label_of(entry["params"])
            group |= {key: entry[key] for key in group if entry.get(key) is not None}
        if name not in decayed and (entry is None or entry.get("weight_decay") is None):
            label, group["weight_decay"] = f"{label}.no_decay", 0.0
        if entry is not None and len(scales) > 0 and entry.get("lr") is None:
            label = f"{label}.{scales[name][0]}"
        groups.setdefault(label, {NAME: label, "params": [], **group})["params"].append(parameter)
    return list(groups.values())


def layer_scales(model: nn.Module, decay: float) -> dict[str, tuple[str, float]]:
    """Return place and factor of each parameter: 1 in the head, ``decay`` in the top layer.

    Raises:
        HftuneError: The model has no plain stack of layers.
    """
    top = len(layer_names(base_of(model))) + 1

    def depth(place: Place) -> int:
        if isinstance(place, int):
            return place + 1
        return 0 if place == "embeddings" else top

    return {
        name: (place_name(place), decay ** (top - depth(place)))
        for name, place in places_of(model).items()
    }


def places_of(model: nn.Module) -> dict[str, Place]:
    """Return where each parameter sits, by its name in the wrapped model."""
    base = base_of(model)
    parameters = dict(base.named_parameters(remove_duplicate=False))
    found = places(base, layer_names(base))
    by_identity = {id(parameters[name]): place for name, place in found.items()}
    return {name: by_identity.get(id(p), "other") for name, p in model.named_parameters()}


def place_name(place: Place) -> str:
    """Return a place as logs and groups call it: ``layer_3``, ``embeddings``, ``head``."""
    return f"layer_{place}" if isinstance(place, int) else place


def base_of(model: nn.Module) -> PreTrainedModel:
    """Return the model of Transformers below an adapter, or the model itself."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return base  # type: ignore[no-any-return]


def label_of(pattern: Pattern) -> str:
    """Return a pattern as the name of its group."""
    return pattern if isinstance(pattern, str) else "+".join(pattern)


def check_groups(model: nn.Module, grouping: Grouping) -> None:
    """Refuse groups that mean nothing that trains.

    Raises:
        HftuneError: A pattern fits nothing, or only what is frozen or taken by a group before it.
    """
    taken: set[str] = set()
    for number, entry in enumerate(grouping.param_groups):
        key = f"training.param_groups[{number}].params"
        check_pattern(key, entry["params"], model)
        found = {
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and is_named(name, entry["params"])
        }
        if not found - taken:
            why = "is in a group before it" if found else "is frozen"
            raise HftuneError(f"{key}: all that {label_of(entry['params'])!r} means {why}")
        taken |= found
    if grouping.layer_decay is not None:
        layer_scales(model, grouping.layer_decay)


def matrices_of_layers(model: nn.Module) -> set[str]:
    """Return the names of the matrices inside the layers that train.

    Raises:
        HftuneError: There are none.
    """
    found = {
        name
        for (name, parameter), place in zip(
            model.named_parameters(), places_of(model).values(), strict=True
        )
        if isinstance(place, int) and parameter.ndim == 2 and parameter.requires_grad
    }
    return _some(found, "muon: no matrix inside a layer trains, so all would be AdamW's")


def token_tables(model: nn.Module) -> set[str]:
    """Return the names of the tokens' embeddings that train.

    Raises:
        HftuneError: There are none, or the head shares them, whose gradient reaches every row.
    """
    base = base_of(model)
    table: Any = base.get_input_embeddings()
    output: Any = base.get_output_embeddings()
    weights = {id(p) for p in table.parameters() if p.requires_grad and p.ndim == 2}
    if output is not None and weights & {id(p) for p in output.parameters()}:
        raise HftuneError(
            "training.optim: sparse_adam: the head shares the embeddings, so every row has a "
            "gradient in every step"
        )
    found = {name for name, p in model.named_parameters() if id(p) in weights}
    return _some(found, "sparse_adam: no embeddings of tokens train, so all would be AdamW's")


def split(
    groups: Iterable[dict[str, Any]], model: nn.Module, first: Collection[str]
) -> list[dict[str, Any]]:
    """Split each group in two: ``part`` 0 for the named parameters, 1 for the rest."""
    named = {id(parameter) for name, parameter in model.named_parameters() if name in first}
    parts = []
    for group in groups:
        for part in (0, 1):
            own = [p for p in group["params"] if (id(p) in named) == (part == 0)]
            if own:
                parts.append({**group, "params": own, "part": part})
    return parts


def _entry_of(name: str, entries: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((entry for entry in entries if is_named(name, entry["params"])), None)


def _some(found: set[str], otherwise: str) -> set[str]:
    if not found:
        raise HftuneError(f"training.optim: {otherwise}", hint="take adamw_torch")
    return found
