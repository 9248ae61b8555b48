# SPDX-License-Identifier: Apache-2.0
"""The section ``initialization`` of a recipe; imports nothing heavy."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from hftune.initialization import SCHEMES, Scheme

Pattern = str | list[str]
Nonlinearity = Literal["linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]

#: Every option of any scheme.
OPTIONS = tuple(dict.fromkeys(option for row in SCHEMES.values() for option in row.options))


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A scheme with arguments of its function in ``torch.nn.init``."""

    name: Scheme | None = field(
        default=None,
        metadata={"help": "How weights are drawn; if absent, as the model's code does."},
    )
    gain: Annotated[float, Gt(0)] | None = field(
        default=None, metadata={"help": "A factor of xavier_*, orthogonal; 1 if absent."}
    )
    a: float | None = field(
        default=None,
        metadata={
            "help": "Lower bound of uniform and trunc_normal; slope of leaky_relu for kaiming_*."
        },
    )
    b: float | None = field(
        default=None, metadata={"help": "Upper bound of uniform and trunc_normal."}
    )
    mean: float | None = field(
        default=None, metadata={"help": "Of normal and trunc_normal; 0 if absent."}
    )
    std: Annotated[float, Gt(0)] | None = field(
        default=None, metadata={"help": "Of normal and trunc_normal; 0.02 if absent."}
    )
    val: float | None = field(default=None, metadata={"help": "Of constant."})
    mode: Literal["fan_in", "fan_out"] | None = field(
        default=None, metadata={"help": "Of kaiming_*: which side counts; fan_in if absent."}
    )
    nonlinearity: Nonlinearity | None = field(
        default=None, metadata={"help": "Of kaiming_*: what follows; leaky_relu if absent."}
    )

    @property
    def options(self) -> dict[str, Any]:
        """Options of the scheme, without its name."""
        given = {option: getattr(self, option) for option in OPTIONS}
        return {option: value for option, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class InitializationRule(Drawing):
    """How the new weights that a pattern means are drawn."""

    name: Scheme = field()  # required, other than above
    params: Pattern


@dataclass(frozen=True, kw_only=True)
class InitializationSection(Drawing):
    """Where new weights begin."""

    rules: list[InitializationRule] = field(
        default_factory=list,
        metadata={
            "help": "Schemes by name pattern, {params, name, ...}: params is a regular expression "
            "for whole names, or a list of names or their last parts. The first that fits counts."
        },
    )
    reinit_top_layers: Annotated[int, Ge(1)] | None = field(
        default=None,
        metadata={"help": "So many pretrained layers, from the top, are drawn anew."},
    )
    reinit_modules: Pattern | None = field(
        default=None,
        metadata={
            "help": "Pretrained modules that are drawn anew: a regular expression for whole names, "
            "or a list of names or their last parts."
        },
    )

    @property
    def is_set(self) -> bool:
        """Whether anything begins otherwise than Transformers would have it."""
        return self.name is not None or bool(self.rules) or self.draws_anew

    @property
    def draws_anew(self) -> bool:
        """Whether pretrained weights are drawn anew."""
        return self.reinit_top_layers is not None or self.reinit_modules is not None

    def drawings(self) -> Iterator[Drawing]:
        """Yield the section's own scheme and those of its rules."""
        yield self
        yield from self.rules
