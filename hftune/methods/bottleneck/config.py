# SPDX-License-Identifier: Apache-2.0
"""Options of a bottleneck adapter."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from peft import PeftConfig
from transformers.activations import ACT2FN

from hftune.methods.peft_tuners import OwnPeftType

Placement = Literal["houlsby", "pfeiffer", "parallel"]
Init = Literal["normal", "kaiming_uniform"]
NORMAL: Init = get_args(Init)[0]

REDUCTION_FACTOR = 16
#: Placement -> the activation of its paper's code.
NON_LINEARITIES = {"houlsby": "gelu", "pfeiffer": "relu", "parallel": "relu"}
#: Placement -> the factor of its paper; He et al. found 4 best.
SCALINGS = {"houlsby": 1.0, "pfeiffer": 1.0, "parallel": 4.0}
#: Placement -> how the down projection is drawn.
INITS: dict[str, Init] = {
    "houlsby": "normal",
    "pfeiffer": "normal",
    "parallel": "kaiming_uniform",
}


@dataclass
class BottleneckConfig(PeftConfig):
    """Configuration of bottleneck adapters.

    Raises:
        ValueError: A value is out of range or unknown, or two exclude each other.

    Example:
        >>> config = BottleneckConfig(placement="parallel")
        >>> config.scaling, config.bottleneck_width(768)
        (4.0, 48)
    """

    r: int | None = field(
        default=None,
        metadata={"help": "Width of the bottleneck; or give reduction_factor."},
    )
    reduction_factor: float | None = field(
        default=None,
        metadata={
            "help": "The model's width over that of the bottleneck; 16 where neither it nor r is "
            "given."
        },
    )
    placement: Placement = field(
        default="pfeiffer",
        metadata={
            "help": "houlsby: after attention and after the feed-forward sublayer; pfeiffer: after "
            "the feed-forward sublayer only, behind its layer norm where there is one; parallel: "
            "beside the feed-forward sublayer."
        },
    )
    non_linearity: str | None = field(
        default=None,
        metadata={
            "help": "Activation between the projections, by its name in transformers; gelu for "
            "houlsby, else relu, if absent."
        },
    )
    dropout: float = field(
        default=0.0, metadata={"help": "Dropout inside the bottleneck, before the up projection."}
    )
    scaling: float | None = field(
        default=None,
        metadata={"help": "Factor of the adapter's output; 4 for parallel, else 1, if absent."},
    )
    init_weights: bool | Init = field(
        default=True,
        metadata={
            "help": "How the down projection is drawn: normal (standard deviation 0.01, cut at two "
            "of them) or kaiming_uniform; true is kaiming_uniform for parallel, else normal. The "
            "up projection is zero, so that nothing changes at the start. false draws both at "
            "random, and is for tests."
        },
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Modules whose output the adapter is added to: a list of name endings or a "
            "regular expression; found by placement if absent."
        },
    )
    input_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "With parallel and target_modules: the modules of the same layers whose input "
            "the adapter reads; the input of the target itself if absent."
        },
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules without adapters, of those that would have one."}
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules that train whole and are saved with the adapter."},
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Only these layers, by number from 0; all if absent."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "With layers_to_transform: the name of the list of layers, such as layers or h."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = OwnPeftType["BOTTLENECK"]  # not among PEFT's own
        if self.placement not in get_args(Placement):
            raise ValueError(
                f"placement: {self.placement!r} is none of {', '.join(get_args(Placement))}"
            )
        if self.r is None and self.reduction_factor is None:
            self.reduction_factor = REDUCTION_FACTOR
        if self.non_linearity is None:
            self.non_linearity = NON_LINEARITIES[self.placement]
        if self.scaling is None:
            self.scaling = SCALINGS[self.placement]
        self._check_numbers()
        self._check_names()
        for name in ("target_modules", "exclude_modules", "input_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))

    def bottleneck_width(self, width: int) -> int:
        """Return the width of the bottleneck between activations of ``width``.

        Raises:
            ValueError: The reduction leaves nothing.
        """
        if self.r is not None:
            return self.r
        assert self.reduction_factor is not None
        reduced = int(width // self.reduction_factor)
        if reduced < 1:
            raise ValueError(
                f"reduction_factor: {self.reduction_factor} leaves nothing of a width of {width}"
            )
        return reduced

    def down_init(self) -> Init:
        """Return how the down projection is drawn."""
        return INITS[self.placement] if isinstance(self.init_weights, bool) else self.init_weights

    def _check_numbers(self) -> None:
        if self.r is not None and self.reduction_factor is not None:
            raise ValueError("give r or reduction_factor, not both: either sets the other")
        if self.r is not None and self.r < 1:
            raise ValueError(f"r: {self.r} must be at least 1")
        if self.reduction_factor is not None and self.reduction_factor < 1:
            raise ValueError(f"reduction_factor: {self.reduction_factor} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} must be at least 0 and below 1")
        if self.scaling is not None and self.scaling <= 0:
            raise ValueError(f"scaling: {self.scaling} must be above 0")

    def _check_names(self) -> None:
        if self.non_linearity not in ACT2FN:
            raise ValueError(
                f"non_linearity: {self.non_linearity!r} is none of {', '.join(sorted(ACT2FN))}"
            )
        if not isinstance(self.init_weights, bool) and self.init_weights not in get_args(Init):
            raise ValueError(
                f"init_weights: {self.init_weights!r} is none of true, false, "
                f"{', '.join(get_args(Init))}"
            )
        if self.target_modules == "all-linear":
            raise ValueError(
                "target_modules: all-linear would put adapters inside the sublayers; leave it out, "
                "or name the last layers of sublayers"
            )
        if self.input_modules and not (self.placement == "parallel" and self.target_modules):
            raise ValueError("input_modules goes with placement: parallel and target_modules only")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern has an effect only with layers_to_transform")
