# SPDX-License-Identifier: Apache-2.0
"""Which task do rows suit, and which column plays which role in it?

Column names decide where a task knows them, what the cells hold decides elsewhere, and the task's
own check has the last word. A task tells the forms that its rows come in.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from datasets import Dataset

from hftune.core.errors import HftuneError
from hftune.data.columns import Role
from hftune.data.contents import Contents, Kind, describe_columns
from hftune.tasks import TASKS
from hftune.tasks.reader import read_rows
from hftune.tasks.task import Task

#: Roles that a column may take for what it holds, if its name says nothing.
BY_CONTENTS: dict[str, tuple[Kind, ...]] = {
    "messages": ("conversations",),
    "text": ("text",),
    "label": ("labels",),
}


@dataclass(frozen=True)
class Guess:
    """A task that the rows suit.

    Attributes:
        task: Its name.
        columns: Role to column.
        reasons: Role to why this column.
        certainty: The share of the roles that names decided.
        selected: The rows, one column a role.
    """

    task: str
    columns: dict[str, str]
    reasons: dict[str, str]
    certainty: float
    selected: Dataset = field(compare=False, repr=False)


def guess_tasks(
    rows: Dataset, given: Mapping[str, str] | None = None, task: str | None = None
) -> list[Guess]:
    """Return the tasks that the rows suit, the likeliest first.

    Args:
        rows: Training rows.
        given: Role to column, where the user said so.
        task: Look at this task alone.

    Raises:
        HftuneError: No task suits; the message says why for each.
    """
    contents = describe_columns(rows)
    guesses: list[Guess] = []
    complaints = []
    order = sorted(TASKS, key=lambda name: TASKS[name].guess_order)
    for name in [task] if task is not None else order:
        try:
            guesses.append(_guess(name, rows, contents, given or {}, alone=task is not None))
        except HftuneError as error:
            complaints.append(f"{name}: {error.message}")
    if not guesses:
        held = ", ".join(f"{item.column} ({item.describe()})" for item in contents)
        raise HftuneError(
            "\n".join([f"the rows suit no task; columns: {held}", *complaints]),
            hint="name task and columns: --task text-classification --column text=message "
            "--column label=team",
        )
    return sorted(guesses, key=lambda guess: -guess.certainty)


def _guess(
    name: str,
    rows: Dataset,
    contents: list[Contents],
    given: Mapping[str, str],
    *,
    alone: bool,
) -> Guess:
    task: Task = TASKS[name].resolve()()
    roles = {role.name: role for role in task.roles}
    forms = [form for form in task.forms() if alone or len(contents) == 1 or not form.last_resort]
    _check_given(given, roles, rows.column_names)
    lacking: list[str] = []
    for form in forms:
        names_only = form.names_only or (form.last_resort and len(contents) > 1)
        chosen = dict(_choose(form.cells, roles, contents, given, names_only=names_only))
        if missing := [role for role in form.cells if role not in chosen]:
            lacking.append(" and ".join(missing))
        if missing or not form.cells:
            continue
        by_name = sum(why.startswith("its name") or role in given
                      for role, (_, why) in chosen.items())  # fmt: skip
        certainty = by_name / len(chosen)
        columns = {role: column for role, (column, _) in chosen.items()}
        selected, columns = read_rows(task, rows, {**given, **columns})
        task.fit_labels(selected, None)
        described = {item.column: item.describe() for item in contents}
        reasons = {role: f"its name; {described[column]}" for role, column in columns.items()}
        reasons |= {role: why for role, (_, why) in chosen.items()}
        return Guess(name, columns, reasons, certainty, selected)
    raise HftuneError(f"no column for {', nor for '.join(lacking) or 'any of its roles'}")


def _choose(
    cells: Mapping[str, tuple[Kind, ...]],
    roles: Mapping[str, Role],
    contents: list[Contents],
    given: Mapping[str, str],
    *,
    names_only: bool = False,
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield role -> (column, why): first what the user says, then by name, then by contents."""
    free = [item for item in contents if item.column not in given.values()]
    waiting = []
    for name, kinds in cells.items():
        fits = [item for item in free if item.kind in kinds]
        if name in given:
            yield name, (given[name], "you named it")
        elif named := _named(roles[name], fits):
            free.remove(named)
            yield name, (named.column, f"its name; {_meaning(name, named)}")
        else:
            waiting.append(name)
    for name in () if names_only else waiting:
        fits = [item for item in free if item.kind in BY_CONTENTS.get(name, ())]
        if best := _only_or_longest(name, fits):
            free.remove(best)
            yield name, (best.column, f"what it holds: {best.describe()}")


def _meaning(role: str, item: Contents) -> str:
    meanings = {"lists": "several labels a row", "numbers": "regression"}
    meaning = meanings.get(item.kind) if role == "label" else None
    return f"{item.describe()}: {meaning}" if meaning else item.describe()


def _named(role: Role, fits: list[Contents]) -> Contents | None:
    lower = {item.column.lower(): item for item in fits}
    return next((lower[name] for name in (role.name, *role.names) if name in lower), None)


def _only_or_longest(role: str, fits: list[Contents]) -> Contents | None:
    """The one column that fits; of several texts the longest.

    Raises:
        HftuneError: Several columns fit, and nothing tells which.
    """
    if len(fits) > 1 and any(item.kind != "text" for item in fits):
        raise HftuneError(f"{role} could be {' or '.join(item.column for item in fits)}")
    return max(fits, key=lambda item: item.length, default=None)


def _check_given(given: Mapping[str, str], roles: Mapping[str, Role], columns: list[str]) -> None:
    for role, column in given.items():
        if role not in roles:
            raise HftuneError(f"it has no role {role!r}; roles: {', '.join(roles)}")
        if column not in columns:
            raise HftuneError(f"no column {column!r}; columns: {', '.join(columns)}")
