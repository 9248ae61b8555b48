# SPDX-License-Identifier: Apache-2.0
"""Keys of the section ``regularization:``."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from hftune.regularization import REGULARIZATIONS

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
    """The share of the weights of linear layers that is dropped."""

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


def _help(key: str, more: str = ".") -> dict[str, str]:
    """Return the description of a key: its summary, and how to give it."""
    return {"help": REGULARIZATIONS[key].summary.removesuffix(".") + more}


@dataclass(frozen=True, kw_only=True)
class RegularizationSection:
    """Methods that keep a model from overfitting."""

    weight_averaging: WeightAveraging | Literal["ema", "swa"] | None = field(
        default=None,
        metadata=_help(
            "weight_averaging",
            ": ema, swa, or {name, decay, start, every}; start and every are optimizer "
            "steps, below 1 shares of the run.",
        ),
    )
    l1: Positive | None = field(default=None, metadata=_help("l1"))
    l2: Positive | None = field(default=None, metadata=_help("l2", "; with l1 an elastic net."))
    l2_sp: Positive | None = field(default=None, metadata=_help("l2_sp"))
    dropout: Share | None = field(default=None, metadata=_help("dropout", "; 0 turns it off."))
    attention_dropout: Share | None = field(default=None, metadata=_help("attention_dropout"))
    drop_path: Share | None = field(
        default=None,
        metadata=_help(
            "drop_path",
            ": the share of rows that pass by the last layer, less below it; the config's"
            " drop_path_rate where a model has one.",
        ),
    )
    drop_connect: DropConnect | Annotated[float, Gt(0), Lt(1)] | None = field(
        default=None, metadata=_help("drop_connect")
    )
    weight_noise: WeightNoise | Positive | None = field(
        default=None, metadata=_help("weight_noise")
    )
    gradient_noise: GradientNoise | Positive | None = field(
        default=None, metadata=_help("gradient_noise")
    )
    sam: Sam | Positive | None = field(
        default=None,
        metadata=_help(
            "sam",
            ": step by the gradient at the highest loss within this distance, or {rho, adaptive}.",
        ),
    )
    adversarial: Positive | None = field(
        default=None, metadata=_help("adversarial", "; each row moves by so much.")
    )
    freeze_batch_norm: bool | None = field(default=None, metadata=_help("freeze_batch_norm"))

    @property
    def averaging(self) -> WeightAveraging | None:
        """The average of the weights with its options; a bare name has become a record."""
        return self.weight_averaging if isinstance(self.weight_averaging, WeightAveraging) else None

    @property
    def penalties(self) -> dict[str, float]:
        """The penalties on weights and their factors."""
        return {
            key: value
            for key, value in self.given().items()
            if REGULARIZATIONS[key].penalizes is not None
        }

    def given(self) -> dict[str, Any]:
        """Return the keys that a recipe sets."""
        values = {key: getattr(self, key) for key in REGULARIZATIONS}
        return {key: value for key, value in values.items() if value is not None}


def regularization_section(given: dict[str, Any]) -> RegularizationSection:
    """Return the section of a checked recipe; a word or number alone stands for its mapping."""
    section = dict(given)
    for key, (record, short) in RECORDS.items():
        value = section.get(key)
        if value is not None:
            section[key] = record(**(value if isinstance(value, dict) else {short: value}))
    return RegularizationSection(**section)
