# SPDX-License-Identifier: Apache-2.0
"""Hold a recipe against the tables of techniques and the rules of what goes with what.

``python -m hftune.recipe.compatibility`` prints the docs page of the same name from them.
"""

from collections.abc import Iterator
from typing import Any

from hftune.core.errors import RecipeError
from hftune.losses import LOSSES
from hftune.methods import METHODS, ROWS, TUNERS
from hftune.methods.rows import MethodRow
from hftune.recipe.load import KeyPath, Source
from hftune.recipe.rules import RULES
from hftune.recipe.rules.named_options import option_problems
from hftune.recipe.rules.probe import NO_TRAINER, training_without_trainer
from hftune.recipe.rules.rule import Sections
from hftune.recipe.schema import TASK_OPTIONS
from hftune.tasks import TASKS


def conflicts(sections: Sections) -> Iterator[tuple[KeyPath, str]]:
    """Yield the key and the sentence of every rule that the recipe breaks."""
    task = sections["task"]
    for section, table in (("method", ROWS), ("loss", LOSSES)):
        choice = sections[section]
        row = None if choice is None else table.get(choice.name)
        if row is not None and not row.suits(task):
            yield (section,), f"{choice.name} goes with {', '.join(row.tasks)} only"
    for key, tasks in TASK_OPTIONS.items():
        if task not in tasks and _given(sections, key) is not None:
            yield tuple(key.split(".")), f"it goes with {', '.join(tasks)} only"
    for rule in RULES:
        if rule.broken(sections):
            yield tuple(rule.key.split(".")), rule.says
    for key in training_without_trainer(sections):
        yield ("training", key), NO_TRAINER
    yield from option_problems(sections)


def _given(sections: Sections, key: str) -> Any:
    section, *below = key.split(".")
    value = sections[section]
    for name in below:
        value = value.get(name) if isinstance(value, dict) else getattr(value, name)
    return value


def check_compatibility(sections: Sections, source: Source) -> None:
    """Raise one :class:`RecipeError` that lists every conflict."""
    problems = [
        f"{source.place(path)}: {'.'.join(map(str, path))}: {says}"
        for path, says in conflicts(sections)
    ]
    if problems:
        raise RecipeError(problems)


def compatibility_page() -> str:
    """Return the docs page: techniques by task, then the rules."""
    lines = ["# What goes with what", ""]
    lines += ["Made from the tables that the check itself reads; a test keeps both equal.", ""]
    lines += ["| technique | " + " | ".join(TASKS) + " |", "|---|" + "---|" * len(TASKS)]
    own = {name: row for name, row in ROWS.items() if row.tasks or name in {**METHODS, **TUNERS}}
    for name, row in {**own, **LOSSES}.items():
        marks = ("yes" if row.suits(task) else "no" for task in TASKS)
        lines.append(f"| `{name}` | " + " | ".join(marks) + " |")
    lines += ["", "Every other PEFT type goes with every task, but for what is said below.", ""]
    lines += ["| key | why a recipe is refused |", "|---|---|"]
    lines += [f"| `{rule.key}` | {rule.says} |" for rule in RULES]
    lines += [f"| `training` | {NO_TRAINER}, and where to push |"]
    lines += ["", "## What a method leaves, and what it cannot do", ""]
    lines += ["An adapter lies beside a base that keeps every bit.", ""]
    lines += ["| method | leaves | starts at the base | cannot |", "|---|---|---|---|"]
    lines += [_cannot_line(name, row) for name, row in ROWS.items()]
    return "\n".join(lines) + "\n"


def _cannot_line(name: str, row: MethodRow) -> str:
    start = "yes" if row.starts_at_base else "no"
    reasons = "; ".join(f"{what}: it {why}" for what, why in row.cannot.items())
    return f"| `{name}` | {row.leaves} | {start} | {reasons} |"


if __name__ == "__main__":
    print(compatibility_page(), end="")
