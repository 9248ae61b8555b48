# SPDX-License-Identifier: Apache-2.0
"""What a recipe says under ``regularization``; imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

Pattern = str | list[str]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True, kw_only=True)
class WeightAveraging:
    """The average of the weights that is evaluated and saved."""

    name: Literal["ema", "swa"]
    decay: Annotated[float, Gt(0), Lt(1)] | None = None
    start: Annotated[float, Ge(0)] | None = None
    every: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class WeightNoise:
    """Noise on weights while the gradient is computed."""

    std: Positive
    params: Pattern | None = None


@dataclass(frozen=True, kw_only=True)
class GradientNoise:
    """Noise on the gradient, of the variance ``eta / (1 + step) ** gamma``."""

    eta: Positive
    gamma: Annotated[float, Ge(0)] = 0.55


@dataclass(frozen=True, kw_only=True)
class Sam:
    """How far sharpness-aware minimization looks for a higher loss."""

    rho: Positive
    adaptive: bool = False


@dataclass(frozen=True, kw_only=True)
class DropConnect:
    """Which share of the weights of linear layers is dropped."""

    p: Annotated[float, Gt(0), Lt(1)]
    modules: Pattern | None = None


#: Key -> its record, and the field that a mere word or number stands for.
RECORDS: dict[str, tuple[type, str]] = {
    "weight_averaging": (WeightAveraging, "name"),
    "weight_noise": (WeightNoise, "std"),
    "gradient_noise": (GradientNoise, "eta"),
    "sam": (Sam, "rho"),
    "drop_connect": (DropConnect, "p"),
}


@dataclass(frozen=True, kw_only=True)
class RegularizationSection:
    """What keeps a model from following its rows too closely."""

    weight_averaging: WeightAveraging | Literal["ema", "swa"] | None = field(
        default=None,
        metadata={
            "help": "Evaluate and save an average of the weights over the steps: ema, swa, or "
            "{name, decay, start, every}; start and every are optimizer steps, below 1 shares of "
            "the run."
        },
    )
    l1: Positive | None = field(
        default=None,
        metadata={"help": "Add so many times the sum of |w| over weights that train to the loss."},
    )
    l2: Positive | None = field(
        default=None,
        metadata={"help": "Add so many times the sum of w² to the loss; with l1 an elastic net."},
    )
    l2_sp: Positive | None = field(
        default=None,
        metadata={
            "help": "Add half of so many times the squared distance to the pretrained weights."
        },
    )
    dropout: Share | None = field(
        default=None,
        metadata={
            "help": "Dropout of hidden states, whatever the model's config calls it; 0 turns it "
            "off."
        },
    )
    attention_dropout: Share | None = field(
        default=None,
        metadata={"help": "Dropout of attention weights, whatever the model's config calls it."},
    )
    drop_path: Share | None = field(
        default=None,
        metadata={
            "help": "Stochastic depth: the share of rows that pass by the last layer, less below "
            "it; the config's drop_path_rate where a model has one."
        },
    )
    drop_connect: DropConnect | Annotated[float, Gt(0), Lt(1)] | None = field(
        default=None,
        metadata={
            "help": "Share of the weights of linear layers that a forward pass drops, or "
            "{p, modules}, modules by regular expression or by names."
        },
    )
    weight_noise: WeightNoise | Positive | None = field(
        default=None,
        metadata={
            "help": "Standard deviation of the noise on weights that train, taken off before the "
            "step, or {std, params}."
        },
    )
    gradient_noise: GradientNoise | Positive | None = field(
        default=None,
        metadata={
            "help": "Variance of the noise on the gradient of the first step, which fades, or "
            "{eta, gamma}."
        },
    )
    sam: Sam | Positive | None = field(
        default=None,
        metadata={
            "help": "Sharpness-aware minimization: step by the gradient at the highest loss "
            "within this distance, or {rho, adaptive}."
        },
    )
    adversarial: Positive | None = field(
        default=None,
        metadata={
            "help": "Train on the tokens' vectors and on those this far away where the loss is "
            "highest; each row moves by so much."
        },
    )
    freeze_batch_norm: bool | None = field(
        default=None,
        metadata={"help": "Keep the statistics of batch normalization as they were pretrained."},
    )

    @property
    def averaging(self) -> WeightAveraging | None:
        """The average of the weights with its options; a bare name has become a record."""
        return self.weight_averaging if isinstance(self.weight_averaging, WeightAveraging) else None

    @property
    def penalties(self) -> dict[str, float]:
        """The penalties on weights and their factors."""
        given = {"l1": self.l1, "l2": self.l2, "l2_sp": self.l2_sp}
        return {name: factor for name, factor in given.items() if factor is not None}


def regularization_section(given: dict[str, Any]) -> RegularizationSection:
    """Return the section of a checked recipe; a word or number alone stands for its mapping."""
    section = dict(given)
    for key, (record, short) in RECORDS.items():
        value = section.get(key)
        if value is not None:
            section[key] = record(**(value if isinstance(value, dict) else {short: value}))
    return RegularizationSection(**section)
