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
        tasks: The tasks it suits; all of them when empty.
    """

    target: str
    summary: str
    tasks: tuple[str, ...] = ()

    def resolve(self) -> Any:
        """Import the module and return the object."""
        module, _, name = self.target.partition(":")
        return getattr(import_module(module), name)

    def suits(self, task: str) -> bool:
        """Tell whether the technique goes with ``task``."""
        return not self.tasks or task in self.tasks
