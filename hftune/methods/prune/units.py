# SPDX-License-Identifier: Apache-2.0
"""Whole units of a layer: neurons of the feed-forward part, or attention heads.

A unit is some rows of one or more matrices and the matching columns of the one behind them. Without
it these have smaller shapes, and the config says one size for all layers, so every layer loses the
same number. Where keys and values serve several heads, these heads and their keys and values are
one unit. The tables below hold the architectures whose smaller models are tested.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hftune.core.errors import HftuneError

Kind = Literal["ffn", "heads"]


@dataclass(frozen=True)
class Place:
    """Where units lie in a layer.

    Attributes:
        into: Modules whose outputs the units are; those that the layer lacks are passed over.
        out: The module that takes them in.
        size: The config's number of them.
        within: What the layer's name must contain.
    """

    into: tuple[str, ...]
    out: str
    size: str
    within: str = ""


BERT = (Place(("intermediate.dense",), "output.dense", "intermediate_size"),)
LLAMA = (Place(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", "intermediate_size"),)
WI = ("DenseReluDense.wi", "DenseReluDense.wi_0", "DenseReluDense.wi_1")
T5 = (Place(WI, "DenseReluDense.wo", "d_ff"),)
BART = (
    Place(("fc1",), "fc2", "encoder_ffn_dim", "encoder."),
    Place(("fc1",), "fc2", "decoder_ffn_dim", "decoder."),
)
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "smollm3")
#: Model type -> its feed-forward parts.
FEED_FORWARD = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet"), BERT),
    **dict.fromkeys(("deberta", "deberta-v2"), BERT),
    "distilbert": (Place(("ffn.lin1",), "ffn.lin2", "hidden_dim"),),
    **dict.fromkeys(LLAMA_LIKE, LLAMA),
    "gpt2": (Place(("mlp.c_fc",), "mlp.c_proj", "n_inner"),),
    "opt": (Place(("fc1",), "fc2", "ffn_dim"),),
    **dict.fromkeys(("t5", "mt5"), T5),
    **dict.fromkeys(("bart", "mbart", "marian"), BART),
}
#: The config's number of heads whose keys and values are their own.
GROUPS = "num_key_value_heads"
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION = (Place(QKV, "self_attn.o_proj", GROUPS),)
#: Model type -> its attention; only where the config has a width of heads apart from their number.
HEADS = dict.fromkeys(LLAMA_LIKE, ATTENTION)
WHY_NO_HEADS = {
    **dict.fromkeys(
        ("t5", "mt5"), "the position biases of its first layer serve the heads of all layers"
    ),
}


@dataclass(frozen=True)
class UnitLayer:
    """The units of one layer.

    Attributes:
        name: Of the layer.
        count: How many there are.
        into: Names of the modules whose outputs they are.
        out: Name of the module that takes them in.
        size: The config's number of them.

    Example:
        >>> layer = UnitLayer("layers.0", 8, ("layers.0.up",), "layers.0.down", "intermediate_size")
        >>> layer.key
        'layers.0.down.weight'
    """

    name: str
    count: int
    into: tuple[str, ...]
    out: str
    size: str

    @property
    def key(self) -> str:
        """The weight whose columns are the units; it stands for the layer."""
        return f"{self.out}.weight"

    def parameters(self, model: nn.Module) -> Iterator[tuple[str, int]]:
        """Yield the parameters that hold parts of units, and the dimension these lie along."""
        for name in self.into:
            module = model.get_submodule(name)
            turned = isinstance(module, Conv1D)
            yield f"{name}.weight", 1 if turned else 0
            if module.bias is not None:
                yield f"{name}.bias", 0
        yield self.key, 0 if isinstance(model.get_submodule(self.out), Conv1D) else 1

    def by_unit(self, value: Tensor, dim: int) -> Tensor:
        """Return a tensor as ``(units, elements of each)``."""
        return value.movedim(dim, 0).reshape(self.count, -1)

    def norms(self, model: nn.Module) -> Tensor:
        """Return the L2 norm of all weights of each unit, shape ``(units,)``."""
        parts = [
            self.by_unit(model.get_parameter(name).detach(), dim)
            for name, dim in self.parameters(model)
        ]
        norms: Tensor = torch.linalg.vector_norm(torch.cat(parts, dim=1).float(), dim=1)
        return norms

    def effects(self, model: nn.Module) -> Tensor:
        """Return how fast the loss changes with the size of each unit, shape ``(units,)``.

        For a factor on a unit, that is the sum of weight times gradient over its columns: Michel et
        al., "Are Sixteen Heads Really Better than One?", 2019, arXiv:1905.10650, equation 2, with
        the batch of an optimizer step in place of a row.
        """
        *_, (name, dim) = self.parameters(model)
        weight = model.get_parameter(name)
        assert weight.grad is not None
        product = weight.detach().float() * weight.grad.float()
        return self.by_unit(product, dim).sum(1).abs()

    def masks(self, model: nn.Module, keep: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each parameter's name and a mask that broadcasts to it.

        Args:
            model: Whose layer it is.
            keep: True for the units that stay, shape ``(units,)``.
        """
        for name, dim in self.parameters(model):
            parameter = model.get_parameter(name)
            width = parameter.shape[dim]
            shape = [width if axis == dim else 1 for axis in range(parameter.ndim)]
            yield name, keep.repeat_interleave(width // self.count).view(shape)


def unit_layers(model: PreTrainedModel, kind: Kind) -> list[UnitLayer]:
    """Find the units of every layer.

    Raises:
        HftuneError: They are not known of this architecture, or cannot be taken out of it.
    """
    config = model.config
    table = FEED_FORWARD if kind == "ffn" else HEADS
    if config.model_type not in table:
        raise HftuneError(
            f"method.structure: {kind} cannot be cut out of {type(model).__name__}: "
            + _why_not(config, kind),
            hint=f"it is known of {', '.join(table)}; unstructured and 2:4 take any architecture",
        )
    modules = dict(model.named_modules())
    layers = []
    for stack, module in modules.items():
        for index in range(len(module)) if isinstance(module, nn.ModuleList) else ():
            name = f"{stack}.{index}"
            for place in table[config.model_type]:
                if place.within in name and f"{name}.{place.out}" in modules:
                    layers.append(_unit_layer(name, place, modules, config))
    return layers


def _unit_layer(
    name: str, place: Place, modules: dict[str, nn.Module], config: PreTrainedConfig
) -> UnitLayer:
    into = [f"{name}.{path}" for path in place.into if f"{name}.{path}" in modules]
    width: Any = modules[f"{name}.{place.out}"]
    inputs = width.nx if isinstance(width, Conv1D) else width.in_features
    count = config.num_key_value_heads if place.size == GROUPS else inputs
    return UnitLayer(name, count, tuple(into), f"{name}.{place.out}", place.size)


def _why_not(config: PreTrainedConfig, kind: Kind) -> str:
    if kind == "ffn" or config.model_type not in FEED_FORWARD:
        return f"where they lie is not known of {config.model_type}"
    alone = f"{type(config).__name__} knows no width of heads but hidden_size / number of heads"
    return WHY_NO_HEADS.get(config.model_type, alone)


def units_left(layers: Sequence[UnitLayer], sparsity: float) -> dict[str, int]:
    """Return how many units stay in a layer, by the config's name of their number.

    Raises:
        HftuneError: None would go, or none would stay.

    Example:
        >>> layer = UnitLayer("layers.0", 8, ("layers.0.up",), "layers.0.down", "intermediate_size")
        >>> units_left([layer], 0.25)
        {'intermediate_size': 6}
    """
    left = {}
    for layer in layers:
        pruned = round(sparsity * layer.count)
        what = "groups of heads" if layer.size in GROUPS else "units"
        if pruned == 0:
            raise HftuneError(
                f"method.sparsity: {sparsity} of the {layer.count} {what} of a layer is none",
                hint=f"{1 / layer.count:.3g} is one of them",
            )
        if pruned == layer.count:
            raise HftuneError(
                f"method.sparsity: {sparsity} prunes all {layer.count} {what} of a layer",
                hint=f"{(layer.count - 1) / layer.count:.3g} leaves one of them",
            )
        left[layer.size] = layer.count - pruned
    return left


def smaller_config(config: PreTrainedConfig, left: dict[str, int]) -> dict[str, int]:
    """Return the fields of the config that say the new sizes.

    Args:
        config: Of the whole model.
        left: Units that stay in a layer, by the config's name of their number.
    """
    changes = dict(left)
    if GROUPS in left:
        shared = config.num_attention_heads // config.num_key_value_heads
        changes["num_attention_heads"] = left[GROUPS] * shared
        whole = config.hidden_size // config.num_attention_heads
        changes["head_dim"] = config.to_dict().get("head_dim") or whole
    return changes


def check_loads(
    skeleton: PreTrainedModel, layers: Sequence[UnitLayer], left: dict[str, int]
) -> None:
    """Make a model from the smaller config and compare its shapes with the ones to come.

    Raises:
        HftuneError: The architecture cannot be built so.
    """
    config = skeleton.config
    changes = smaller_config(config, left)
    said = ", ".join(f"{key}: {value}" for key, value in changes.items())
    try:
        smaller: Any = type(config).from_dict({**config.to_dict(), **changes})
        with init_empty_weights():
            built = type(skeleton)(smaller)
    except (ValueError, StrictDataclassError) as error:
        raise HftuneError(
            f"method.sparsity: {type(skeleton).__name__} cannot be built with {said}: "
            f"{str(error).strip().splitlines()[-1].strip()}",
            hint="another sparsity leaves another number",
        ) from error
    due = {name: list(p.shape) for name, p in skeleton.named_parameters()}
    for layer in layers:
        for name, dim in layer.parameters(skeleton):
            due[name][dim] = due[name][dim] // layer.count * left[layer.size]
    if {name: list(p.shape) for name, p in built.named_parameters()} != due:
        raise HftuneError(
            f"method.structure: {type(config).__name__} with {said} gives other shapes than those "
            "that are left"
        )


def shrink(model: PreTrainedModel, layers: Sequence[UnitLayer], masks: dict[str, Tensor]) -> None:
    """Cut the masked units out, in place; the config says the new sizes.

    Args:
        model: Not wrapped.
        layers: All that the masks are of.
        masks: Of each parameter that holds parts of units; as :meth:`UnitLayer.masks` gives them.
    """
    left = {layer.size: int(masks[layer.key].float().mean() * layer.count + 0.5)
            for layer in layers}  # fmt: skip
    changes = smaller_config(model.config, left)
    for layer in layers:
        for name, dim in list(layer.parameters(model)):
            old = model.get_parameter(name)
            chosen = masks[name].flatten().nonzero().flatten().to(old.device)
            place, _, part = name.rpartition(".")
            module = model.get_submodule(place)
            new = nn.Parameter(old.detach().index_select(dim, chosen), old.requires_grad)
            setattr(module, part, new)
            _note_shape(module)
    for key, value in changes.items():
        setattr(model.config, key, value)


def _note_shape(module: Any) -> None:
    """Let a layer say its new width."""
    if isinstance(module, Conv1D):
        module.nx, module.nf = module.weight.shape
    else:
        module.out_features, module.in_features = module.weight.shape
