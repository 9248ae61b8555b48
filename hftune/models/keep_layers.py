# SPDX-License-Identifier: Apache-2.0
"""Make a smaller model from some layers of another one, to start a student.

The chosen layers and all other modules keep their weights bit by bit. The result is a plain model
of the same architecture whose config has fewer layers.
"""

import copy
import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from hftune.core.errors import HftuneError

KEY = "model.keep_layers"


def shallow_config(config: PreTrainedConfig, kept: Sequence[int]) -> PreTrainedConfig:
    """Return a copy of a config for a model with only these layers.

    Args:
        config: Config of the whole model.
        kept: Numbers of the layers, counted from 0, in rising order.

    Raises:
        HftuneError: The model has no such layer, or its config has no number of layers.
    """
    text = config.get_text_config()
    number = getattr(text, "num_hidden_layers", None)
    if number is None or config.is_encoder_decoder:
        raise HftuneError(f"{KEY}: {config.model_type} has no single stack of layers")
    if kept[-1] >= number:
        raise HftuneError(
            f"{KEY}: there is no layer {kept[-1]}: the model's go from 0 to {number - 1}"
        )
    shallow = copy.deepcopy(config)
    text = shallow.get_text_config()
    for name, value in vars(text).items():  # such as layer_types, with one entry for each layer
        if "layer" in name and isinstance(value, list | tuple) and len(value) == number:
            setattr(text, name, [value[layer] for layer in kept])
    text.num_hidden_layers = len(kept)
    return shallow


def check_kept(whole: PreTrainedModel, shallow: PreTrainedModel, kept: Sequence[int]) -> None:
    """Raise :class:`HftuneError` if layers of a model cannot take each other's places.

    Args:
        whole: The whole model, without weights.
        shallow: The same architecture with fewer layers, without weights.
        kept: Numbers of the layers.
    """
    given = _kept_weights(whole, whole.state_dict(), kept)
    wanted = shallow.state_dict()
    wrong = [
        name
        for name in sorted(given.keys() | wanted.keys())
        if name not in given or name not in wanted or given[name].shape != wanted[name].shape
    ]
    if wrong:
        raise HftuneError(
            f"{KEY}: {whole.config.model_type} cannot be made of these layers: {wrong[0]} would "
            "not fit",
            hint="its layers differ from each other; keep the first one, too",
        )


def with_layers(model: Any, config: PreTrainedConfig, kept: Sequence[int]) -> Any:
    """Return a model with some layers of another model, and its weights.

    Args:
        model: The whole model.
        config: Config of the smaller model; see :func:`shallow_config`.
        kept: Numbers of the layers.
    """
    shallow = type(model)._from_config(
        config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
    )
    shallow.load_state_dict(_kept_weights(model, model.state_dict(), kept))
    shallow.tie_weights()
    if model.can_generate():
        shallow.generation_config = model.generation_config
    return shallow.train(model.training)


def _kept_weights(
    model: PreTrainedModel, weights: dict[str, Tensor], kept: Sequence[int]
) -> dict[str, Tensor]:
    """Return the weights that stay, by their names in the smaller model."""
    number = model.config.get_text_config().num_hidden_layers
    stacks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == number
    ]
    if not stacks:
        raise HftuneError(
            f"{KEY}: {model.config.model_type} has no list of {number} layers to choose from"
        )
    place = re.compile(rf"({'|'.join(map(re.escape, stacks))})\.(\d+)\.(.+)")
    return dict(_renamed(weights, place, {layer: index for index, layer in enumerate(kept)}))


def _renamed(
    weights: dict[str, Tensor], place: re.Pattern[str], index: dict[int, int]
) -> Iterable[tuple[str, Tensor]]:
    for name, weight in weights.items():
        if (found := place.fullmatch(name)) is None:
            yield name, weight
        elif int(found[2]) in index:
            yield f"{found[1]}.{index[int(found[2])]}.{found[3]}", weight
