# SPDX-License-Identifier: Apache-2.0
"""``hftune init``: write a first, commented recipe for the user's own rows."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer
from datasets import Dataset
from ruamel.yaml import YAML

from hftune.commands.schema import schema
from hftune.core.console import say, warn
from hftune.core.errors import HftuneError, RecipeError
from hftune.core.files import atomic_write
from hftune.core.registry import default_name
from hftune.core.shipped import PACKAGE, shipped_folder
from hftune.core.suggest import did_you_mean
from hftune.data.contents import describe_columns
from hftune.data.load_rows import load_splits
from hftune.methods import ROWS
from hftune.recipe.json_schema import choice_names, recipe_schema
from hftune.recipe.recipe import Recipe
from hftune.recipe.schema_file import SCHEMA_FILE
from hftune.recipe.starter import IMBALANCED, Draft, write_recipe
from hftune.tasks import TASKS
from hftune.tasks.guess import Guess, guess_tasks

OWN_SCHEMA_FILE = f"hftune.{SCHEMA_FILE}"
FEW_ROWS = 10
SHOWN_LABELS = 10


def init(
    data: str | None = None,
    *,
    task: str | None = None,
    model: str | None = None,
    method: str | None = None,
    columns: Mapping[str, str] | None = None,
    output: Path | None = None,
    force: bool = False,
    ask: bool = False,
) -> Path:
    """Write a commented recipe for a data file, and print a description of the data.

    Args:
        data: csv, jsonl or parquet file, glob, folder, Hub id or demo data.
        task: The task; guessed from the rows if None.
        model: The model; a small demo model if None.
        method: The method; the default method if None.
        columns: Role -> column, for columns that are guessed wrong.
        output: The recipe's file; named after the data if None.
        force: Replace an existing file.
        ask: Ask for the other arguments in the terminal.

    Returns:
        The recipe's path.

    Raises:
        HftuneError: The data cannot be read, suit no task, or the file exists.
        RecipeError: The model or method given makes no valid recipe.
    """
    data, output = _places(data, task, output, force=force, ask=ask)
    rows, validation = load_splits(data)
    _say_rows(data, rows)
    guess = _choose_guess(_guesses(rows, columns, task, ask=ask), columns, rows, ask=ask)
    chosen = _choose_model(guess.task, model, ask=ask), _choose_method(method, ask=ask)
    _write(
        output, _draft(data, output, guess, *chosen, rows, has_validation=validation is not None)
    )
    return output


def _places(
    data: str | None, task: str | None, output: Path | None, *, force: bool, ask: bool
) -> tuple[str, Path]:
    """Return the data and the file of the recipe: given, asked for or by default."""
    if task is not None and task not in TASKS:
        raise HftuneError(
            f"--task: unknown task {task!r}{did_you_mean(task, TASKS)}", hint=", ".join(TASKS)
        )
    if data is None and ask:
        data = _prompt("Data (file, glob, folder or Hub id)")
    if data is None:
        raise HftuneError("no data named", hint="hftune init tickets.csv")
    output = output or Path(f"{_stem(data)}.yaml")
    if ask:
        output = Path(_prompt("Recipe", str(output)))
    if output.exists() and not force:
        raise HftuneError(f"{output} exists", hint="name another with --output, or add --force")
    return data, output


def _draft(
    data: str,
    output: Path,
    guess: Guess,
    model: str,
    method: str,
    rows: Dataset,
    *,
    has_validation: bool,
) -> Draft:
    return Draft(
        file=str(output),
        schema=_schema_path(output),
        task=guess.task,
        model=model,
        method=method,
        data=data,
        rows=len(rows),
        columns=guess.columns,
        reasons=guess.reasons,
        labels=_labels(guess, rows),
        has_validation=has_validation,
    )


def _write(output: Path, draft: Draft) -> None:
    _say_labels(draft)
    text = write_recipe(draft)
    _check(text)
    atomic_write(output, text)
    _write_schema(output)
    say(f"recipe: {output}")
    say(f"next:  hftune check {output}")


def _stem(data: str) -> str:
    """Return a file's name without its ending, or the last part of another source."""
    name = Path(data.rstrip("/")).name.removeprefix("demo:")
    stem = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in name)
    return Path(stem).stem.strip("-.") or "recipe"


def _say_rows(data: str, rows: Dataset) -> None:
    say(f"{data}: {len(rows):,} rows")
    for item in describe_columns(rows):
        say(f"  {item.column}: {item.describe()}")


def _guesses(
    rows: Dataset, columns: Mapping[str, str] | None, task: str | None, *, ask: bool
) -> list[Guess]:
    """Guess tasks from the rows; if that fails, ask for the task and its columns."""
    try:
        return guess_tasks(rows, columns, task)
    except HftuneError as error:
        if not ask:
            raise
        warn(error.message)
    task = task or _prompt("Task", None, list(TASKS))
    roles = [role.name for role in TASKS[task].resolve().roles if role.required]
    roles = roles or list(TASKS[task].resolve().forms()[-1].cells)
    named = {role: _prompt(f"Column for {role}", None, rows.column_names) for role in roles}
    return guess_tasks(rows, {**(columns or {}), **named}, task)


def _choose_guess(
    guesses: Sequence[Guess], columns: Mapping[str, str] | None, rows: Dataset, *, ask: bool
) -> Guess:
    best = guesses[0]
    if ask and len(guesses) > 1:
        name = _prompt("Task", best.task, [guess.task for guess in guesses])
        best = next(guess for guess in guesses if guess.task == name)
    elif len(guesses) > 1:
        others = ", ".join(guess.task for guess in guesses[1:])
        say(f"also possible: {others}; choose with --task")
    if ask:
        named = {role: _prompt(f"Column for {role}", column, rows.column_names)
                 for role, column in best.columns.items()}  # fmt: skip
        if named != best.columns:
            best = guess_tasks(rows, {**(columns or {}), **named}, best.task)[0]
    say(f"task: {best.task} ({TASKS[best.task].summary})")
    for role, column in best.columns.items():
        say(f"  {role} = {column}: {best.reasons[role]}")
    return best


def _choose_model(task: str, model: str | None, *, ask: bool) -> str:
    row = TASKS[task]
    default = row.demo_model
    if model is None and ask:
        return _prompt("Model (Hub id, folder or demo model)", default)
    if (chosen := model or default) is None:
        raise HftuneError(f"no demo model suits {task}", hint=row.model_hint or "name one: --model")
    return chosen


def _choose_method(method: str | None, *, ask: bool) -> str:
    if method is None and ask:
        known = list(choice_names(recipe_schema()["properties"]["method"]))
        return _prompt("Method", default_name(ROWS), known)
    return method or default_name(ROWS)


def _labels(guess: Guess, rows: Dataset) -> dict[str, int]:
    """Return the number of rows of each label, if each row has one label."""
    kinds = {item.column: item.kind for item in describe_columns(rows)}
    if "label" not in guess.columns or kinds[guess.columns["label"]] != "labels":
        return {}
    return dict(Counter(map(str, guess.selected["label"])).most_common())


def _say_labels(draft: Draft) -> None:
    if not draft.labels:
        return
    shown = [f"{label} {rows}" for label, rows in list(draft.labels.items())[:SHOWN_LABELS]]
    more = len(draft.labels) - len(shown)
    say(f"rows by label: {', '.join(shown)}{f' and {more} labels more' if more else ''}")
    if draft.imbalance >= IMBALANCED:
        say(
            f"the labels are imbalanced, {draft.imbalance:.3g} to 1: the recipe weighs them "
            "(loss: class_weights: balanced)"
        )
    rare = [label for label, rows in draft.labels.items() if rows < FEW_ROWS]
    if rare:
        warn(f"labels with fewer than {FEW_ROWS} rows: {', '.join(rare[:SHOWN_LABELS])}")


def _check(text: str) -> None:
    """Check the recipe against the schema and the rules before it is written."""
    try:
        Recipe(**YAML(typ="safe", pure=True).load(text))
    except RecipeError as error:
        problems = [problem.removeprefix("recipe: ") for problem in error.problems]
        raise RecipeError(problems, hint=error.hint) from None


def _schema_path(output: Path) -> str:
    """Return the path of the schema: the shipped one in a source tree, else a new one."""
    folder = output.absolute().parent
    shipped = shipped_folder("recipes")
    if shipped.parent != PACKAGE and folder.is_relative_to(shipped.parent):
        return os.path.relpath(shipped / SCHEMA_FILE, folder)
    return OWN_SCHEMA_FILE


def _write_schema(output: Path) -> None:
    beside = output.parent / OWN_SCHEMA_FILE
    if _schema_path(output) == OWN_SCHEMA_FILE and not beside.exists():
        schema(beside)
        say(f"schema for editors: {beside}")


def _prompt(question: str, default: str | None = None, choices: Sequence[str] = ()) -> str:
    """Ask in the terminal until the answer is one of the choices."""
    while True:
        answer = str(typer.prompt(question, default=default, err=True)).strip()
        if not choices or answer in choices:
            return answer
        warn(f"{answer!r} is none of them{did_you_mean(answer, choices)}: {', '.join(choices)}")
