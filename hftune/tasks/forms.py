# SPDX-License-Identifier: Apache-2.0
"""Forms that the rows of a task come in, by which ``hftune init`` guesses task and columns."""

from collections.abc import Mapping
from dataclasses import dataclass

from hftune.data.columns import Role
from hftune.data.contents import Kind

ANY: tuple[Kind, ...] = ("text", "labels", "numbers", "lists", "conversations", "names")


@dataclass(frozen=True, kw_only=True)
class Form:
    """Roles that the columns of such rows have, and kinds of cells that each may hold.

    Attributes:
        cells: Role -> kinds of cells.
        names_only: Whether columns are found by their names alone.
        last_resort: Whether it is tried only where there is one column, or the user names the
            task.
    """

    cells: Mapping[str, tuple[Kind, ...]]
    names_only: bool = False
    last_resort: bool = False


def form_of(roles: tuple[Role, ...]) -> Form:
    """Return the form with all required roles, found by the names of columns."""
    return Form(cells={role.name: ANY for role in roles if role.required}, names_only=True)
