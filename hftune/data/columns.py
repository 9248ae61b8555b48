# SPDX-License-Identifier: Apache-2.0
"""Match columns with the roles of a task: named by the user, or guessed if only one fits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hftune.core.errors import HftuneError


@dataclass(frozen=True)
class Role:
    """A part that a column plays in a task.

    Attributes:
        name: The task's word for it.
        names: Column names that mean it, best first.
        required: Whether the task needs it.
        answer: Whether the model predicts it; rows to predict need not have it.

    Example:
        >>> Role("label", ("labels", "class"), answer=True).required
        True
    """

    name: str
    names: tuple[str, ...]
    required: bool = True
    answer: bool = False


#: Rows of one group, such as a patient or a document, all go to the same split.
GROUP = Role("group", (), required=False)


def find_columns(
    columns: Sequence[str], roles: Iterable[Role], given: Mapping[str, str]
) -> dict[str, str]:
    """Return role -> column.

    A role takes the column that the user names; else the column with the name of the role; else the
    only column with one of the other names of the role.

    Raises:
        HftuneError: A named role or column does not exist, a required one is not found, or two
            columns fit.

    Example:
        >>> roles = [Role("text", ("sentence",)), Role("label", ("class",))]
        >>> find_columns(["id", "sentence", "class"], roles, given={})
        {'text': 'sentence', 'label': 'class'}
    """
    roles = list(roles)
    known = [role.name for role in roles]
    for role_name, column in given.items():
        if role_name not in known:
            raise HftuneError(f"data.columns: unknown role {role_name!r}; roles: {known}")
        if column not in columns:
            raise HftuneError(f"data.columns: no column {column!r}; columns: {list(columns)}")
    found = dict(given)
    for role in roles:
        if role.name in found:
            continue
        taken = set(found.values())
        if role.name in columns and role.name not in taken:
            found[role.name] = role.name
            continue
        lower = {column.lower(): column for column in columns if column not in taken}
        fits = [lower[name] for name in (role.name, *role.names) if name in lower]
        if len(fits) > 1 and fits[0].lower() != role.name:
            raise HftuneError(
                f"data.columns: {role.name} could be {' or '.join(fits)}; columns: {list(columns)}",
                hint=f"say which: columns: {{{role.name}: {fits[0]}}}",
            )
        if fits:
            found[role.name] = fits[0]
        elif role.required:
            free = [column for column in columns if column not in found.values()]
            raise HftuneError(
                f"no column for {role.name}; columns: {list(columns)}",
                hint=f"say which: data: {{columns: {{{role.name}: {free[0]}}}}}"
                if free
                else f"add a column with the {role.name}",
            )
    return found
