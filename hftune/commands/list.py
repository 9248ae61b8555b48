# SPDX-License-Identifier: Apache-2.0
"""``hftune list``: list all names that a recipe can use, without importing torch."""

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from hftune.core.errors import HftuneError
from hftune.core.shipped import shipped_folder
from hftune.core.suggest import did_you_mean
from hftune.data import DEMO_DATA
from hftune.data.sampling import DIFFICULTIES, PACINGS, SAMPLINGS
from hftune.initialization import SCHEMES
from hftune.methods import method_row
from hftune.models.demo_models import DEMO_MODELS
from hftune.optimization.optimizers import OPTIMIZERS
from hftune.optimization.schedules import SCHEDULES
from hftune.recipe.compatibility import conflicts
from hftune.recipe.defaults import typed_sections
from hftune.recipe.json_schema import choice_names, recipe_schema
from hftune.recipe.schema_file import EDITOR_LINE
from hftune.regularization import REGULARIZATIONS
from hftune.tasks import TASKS

COMMENT = re.compile(r"#\s?(.*)")
TASK = re.compile(r"^task:\s*([\w-]+)", re.MULTILINE)
#: Enough rows for a smooth line.
PLOTTED_ROWS = 10_000
PICTURES = (".png", ".svg", ".pdf")
COMMANDS = ("hftune ", "accelerate ", EDITOR_LINE.removeprefix("# "))


Name = TypeVar("Name", bound=str)


class _Summarized(Protocol):
    """A row of any table."""

    @property
    def summary(self) -> str:
        """One line for people."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One name that a recipe or a command takes.

    Attributes:
        name: The name.
        summary: One line for people.
        tasks: Tasks that it supports; all of them if empty.
        package: A further package to install, by its name for pip.
        leaves: Result of a run, if it is a method.

    Example:
        >>> Entry(name="lion", summary="Sign of the momentum.", package="lion-pytorch").name
        'lion'
    """

    name: str
    summary: str
    tasks: tuple[str, ...] = ()
    package: str | None = None
    leaves: str | None = None


def list_(kind: str | None = None) -> dict[str, list[Entry]]:
    """Return the names that a recipe or the command line takes.

    Args:
        kind: One of ``KINDS``, such as methods; all of them if None.

    Returns:
        Kind -> entries, for the installed versions.

    Raises:
        HftuneError: There is no such kind.

    Example:
        >>> "linear" in {entry.name for entry in list_("schedules")["schedules"]}
        True
    """
    if kind is not None and kind not in KINDS:
        raise HftuneError(
            f"unknown kind {kind!r}{did_you_mean(kind, KINDS)}", hint=f"kinds: {', '.join(KINDS)}"
        )
    return {name: entries() for name, entries in KINDS.items() if kind in (None, name)}


def plot_schedules(path: Path) -> None:
    """Draw every schedule over a run of 100 optimizer steps, 10 of them warmup.

    Schedules that follow a metric get one that improves until step 40 and then stays constant, with
    an evaluation every 5 steps.

    Args:
        path: The picture, such as schedules.png.

    Raises:
        HftuneError: The ending is that of no picture, or the folder is not there.
    """
    _check_picture(path)
    from hftune.optimization.make_schedule import sample_rates
    from hftune.report.curve_grid import draw_grid

    captions = {
        name: ", ".join(f"{key}: {value}" for key, value in row.example.items())
        for name, row in SCHEDULES.items()
    }
    curves = {name: sample_rates(name) for name in SCHEDULES}
    words = {"xlabel": "optimizer step", "ylabel": "share of learning_rate"}
    draw_grid(curves, captions, path, **words)


def plot_pacings(path: Path) -> None:
    """Draw the share of rows in use for every pacing, with its defaults, over 100 steps.

    Args:
        path: The picture, such as pacings.png.

    Raises:
        HftuneError: The ending is that of no picture, or the folder is not there.
    """
    _check_picture(path)
    import numpy as np

    from hftune.data.sampling.curriculum import Curriculum
    from hftune.report.curve_grid import draw_grid

    curves: dict[str, list[float]] = {}
    for name in PACINGS:
        curriculum = Curriculum(np.arange(PLOTTED_ROWS, dtype=np.float64), pacing=name)
        curves[name] = [curriculum.known(step, 100) / PLOTTED_ROWS for step in range(100)]
    words = {"xlabel": "optimizer step", "ylabel": "share of known rows"}
    draw_grid(curves, {}, path, **words)


def _check_picture(path: Path) -> None:
    if path.suffix not in PICTURES:
        raise HftuneError(f"{path}: no picture", hint=f"endings: {', '.join(PICTURES)}")
    if not path.parent.is_dir():
        raise HftuneError(f"{path}: {path.parent} is no folder")


def count_names(kinds: dict[str, list[Entry]]) -> str:
    """Return the numbers of names by kind, as a line for people.

    Example:
        >>> count_names({"tasks": [Entry(name="text-classification", summary="Labels.")]})
        '1 names: 1 tasks'
    """
    sizes = {kind: len(entries) for kind, entries in kinds.items()}
    parts = ", ".join(f"{size} {kind}" for kind, size in sizes.items())
    return f"{sum(sizes.values())} names: {parts}"


def listing(kinds: dict[str, list[Entry]]) -> str:
    """Return the entries as text for people.

    Example:
        >>> print(listing({"losses": [Entry(name="ntp", summary="Next token.", package="x")]}))
        losses (1)
          ntp  Next token. [needs x]
    """
    blocks = []
    for kind, entries in kinds.items():
        width = max((len(entry.name) for entry in entries), default=0)
        lines = [f"  {entry.name:<{width}}  {_sentence(entry)}" for entry in entries]
        blocks.append("\n".join([f"{kind} ({len(entries)})", *lines]))
    return "\n\n".join(blocks)


def _sentence(entry: Entry) -> str:
    remarks = [f"[{', '.join(entry.tasks)}]"] if entry.tasks else []
    remarks += [f"[needs {entry.package}]"] if entry.package else []
    remarks += [f"[leaves {entry.leaves}]"] if entry.leaves else []
    return " ".join([entry.summary, *remarks])


def _choices(section: str) -> list[Entry]:
    options = choice_names(recipe_schema()["properties"][section])
    return [
        Entry(name=name, summary=option["description"], tasks=_suited(section, name))
        for name, option in options.items()
    ]


def _methods() -> list[Entry]:
    entries = _choices("method")
    return [replace(entry, leaves=method_row(entry.name).leaves) for entry in entries]


def _suited(section: str, name: str) -> tuple[str, ...]:
    """Return the tasks that the rules allow for a method or loss; none if they allow all."""
    suited = tuple(task for task in TASKS if not _refused(task, section, name))
    return () if len(suited) == len(TASKS) else suited


def _refused(task: str, section: str, name: str) -> bool:
    sections = typed_sections({"task": task, "model": "any", "data": "any", section: name})
    return any(path == (section,) for path, _ in conflicts(sections))


def _optimizers() -> list[Entry]:
    return [
        Entry(name=name, summary=row.summary, package=row.package)
        for name, row in OPTIMIZERS.items()
    ]


def _rows(table: Mapping[Name, _Summarized]) -> list[Entry]:
    """Return the names of a table with their summaries only."""
    return [Entry(name=name, summary=row.summary) for name, row in table.items()]


def _recipes() -> list[Entry]:
    folder = shipped_folder("recipes")
    files = sorted([*folder.rglob("*.yaml"), *folder.rglob("*.py")])
    return [_recipe(file) for file in files]


def _recipe(file: Path) -> Entry:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        docstring = ast.get_docstring(ast.parse(text)) or ""
        return Entry(name=_typed(file), summary=_first_sentence(docstring))
    return Entry(
        name=_typed(file),
        summary=_first_sentence(_opening_comment(text)),
        tasks=tuple(TASK.findall(text)[:1]),
    )


def _accelerate() -> list[Entry]:
    files = sorted(shipped_folder("accelerate_configs").glob("*.yaml"))
    texts = {file.stem: file.read_text(encoding="utf-8") for file in files}
    return [
        Entry(name=name, summary=_first_sentence(_opening_comment(text)))
        for name, text in texts.items()
    ]


def _models() -> list[Entry]:
    return [
        Entry(name=f"demo:{name}", summary=model.summary, tasks=_beginning_with(f"demo:{name}"))
        for name, model in DEMO_MODELS.items()
    ]


def _beginning_with(model: str) -> tuple[str, ...]:
    """Return the tasks whose demo model this is."""
    return tuple(name for name, row in TASKS.items() if row.demo_model == model)


def _data() -> list[Entry]:
    rows = DEMO_DATA.items()
    return [Entry(name=name, summary=row.summary, tasks=tuple(row.columns)) for name, row in rows]


def _typed(file: Path) -> str:
    """Return the path relative to the current folder, if it lies there."""
    inside = file.is_relative_to(Path.cwd())
    return str(file.relative_to(Path.cwd()) if inside else file)


def _opening_comment(text: str) -> str:
    """Return the opening comment of a file, without commands."""
    lines = []
    for line in text.splitlines():
        comment = COMMENT.match(line)
        if comment is None:
            break
        if not comment[1].startswith(COMMANDS):
            lines.append(comment[1])
    return "\n".join(lines)


def _first_sentence(prose: str) -> str:
    joined = " ".join(prose.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.?!])\s+(?=[A-Z])", joined, maxsplit=1)[0]


KINDS: dict[str, Callable[[], list[Entry]]] = {
    "tasks": lambda: _rows(TASKS),
    "methods": _methods,
    "losses": lambda: _choices("loss"),
    "optimizers": _optimizers,
    "schedules": lambda: _rows(SCHEDULES),
    "initializations": lambda: _rows(SCHEMES),
    "samplings": lambda: _rows(SAMPLINGS),
    "difficulties": lambda: _rows(DIFFICULTIES),
    "pacings": lambda: _rows(PACINGS),
    "regularizations": lambda: _rows(REGULARIZATIONS),
    "recipes": _recipes,
    "accelerate": _accelerate,
    "models": _models,
    "data": _data,
}
