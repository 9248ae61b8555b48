# SPDX-License-Identifier: Apache-2.0
"""A rule, and what rules ask of a recipe."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

Sections = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """Two things that do not go together.

    Attributes:
        key: The key that the error points at.
        says: The sentence for the user, and for the docs.
        broken: Whether a recipe breaks the rule.
    """

    key: str
    says: str
    broken: Callable[[Sections], bool]


def training(sections: Sections, key: str, default: Any = None) -> Any:
    """Return a field of ``training`` as the recipe gives it."""
    return sections["training"].get(key, default)


def option(sections: Sections, name: str) -> Any:
    """Return an option of the method as the recipe gives it."""
    return sections["method"].options.get(name)


def has_validation(sections: Sections) -> bool:
    """Tell whether there will be validation rows."""
    return sections["data"].validation is not None or sections["data"].validation_size > 0


def quantized(sections: Sections, *bits: str) -> bool:
    """Tell whether one of the switches, such as ``load_in_4bit``, is on."""
    quantization = sections["model"].quantization or {}
    return any(quantization.get(bit) for bit in bits)


def installed(*packages: str) -> bool:
    """Tell whether all of the packages are there, without importing them."""
    return all(find_spec(package) is not None for package in packages)
