# SPDX-License-Identifier: Apache-2.0
"""A row of a family's literal table: data that imports nothing until it is resolved."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """One technique of a family.

    Attributes:
        target: Where it lives, as ``package.module:object``.
        summary: One line for people.
        options: The dataclass whose fields are its options, where that is not the target.
        tasks: The tasks it suits; all of them when empty.
    """

    target: str
    summary: str
    options: str | None = None
    tasks: tuple[str, ...] = ()

    def resolve(self) -> Any:
        """Import the module and return the object."""
        return named(self.target)

    def resolve_options(self) -> Any:
        """Import the module and return the dataclass of the options."""
        return named(self.options or self.target)

    def suits(self, task: str) -> bool:
        """Tell whether the technique goes with ``task``."""
        return not self.tasks or task in self.tasks


def named(place: str) -> Any:
    """Import what ``package.module:object`` names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
