# SPDX-License-Identifier: Apache-2.0
"""Check a recipe against the registries of techniques and all rules of compatibility.

``python -m hftune.recipe.compatibility`` prints the page of the docs with the same name.
"""

from collections.abc import Iterator, Mapping

from hftune.core.errors import RecipeError
from hftune.core.registry import Choice, LossRow, MethodRow
from hftune.core.rules import RecipeView
from hftune.data.rules import BATCH_RULES, DATA_RULES
from hftune.data.sampling.rules import SAMPLING_RULES
from hftune.distillation.rules import DISTILLATION_RULES
from hftune.evaluation.rules import EVALUATION_RULES
from hftune.initialization.rules import INITIALIZATION_RULES
from hftune.losses import LOSSES
from hftune.losses.rules import LOSS_RULES
from hftune.methods import METHODS, ROWS, method_row
from hftune.methods.rules import METHOD_RULES
from hftune.methods.tuners import TUNERS
from hftune.models.rules import MODEL_RULES
from hftune.optimization.optimizers import DEFAULT as DEFAULT_OPTIMIZER
from hftune.optimization.optimizers import OPTIMIZERS
from hftune.optimization.option_rules import option_problems
from hftune.optimization.rules import OPTIMIZATION_RULES
from hftune.optimization.schedules import DEFAULT as DEFAULT_SCHEDULE
from hftune.optimization.schedules import SCHEDULES
from hftune.recipe.defaults import Sections
from hftune.recipe.training_rules import (
    NO_TRAINER,
    TRAINING_RULES,
    training_without_trainer,
)
from hftune.recipe.yaml_source import KeyPath, Source
from hftune.regularization.rules import REGULARIZATION_RULES
from hftune.tasks import TASKS, option_tasks
from hftune.tasks.rules import TASK_RULES

#: Rules about options of one technique; they are fields of its row.
OWN_RULES = tuple(
    {
        (rule.key, rule.says): rule
        for row in (*ROWS.values(), *LOSSES.values())
        for rule in row.rules
    }.values()
)
RULES = (
    *TASK_RULES,
    *DATA_RULES,
    *SAMPLING_RULES,
    *BATCH_RULES,
    *MODEL_RULES,
    *METHOD_RULES,
    *LOSS_RULES,
    *DISTILLATION_RULES,
    *INITIALIZATION_RULES,
    *OPTIMIZATION_RULES,
    *REGULARIZATION_RULES,
    *EVALUATION_RULES,
    *TRAINING_RULES,
)


def recipe_view(sections: Sections) -> RecipeView:
    """Return the view of a recipe that rules get.

    Args:
        sections: Result of :func:`hftune.recipe.defaults.typed_sections`.
    """
    loss, training = sections["loss"], sections["training"]
    optimizer = OPTIMIZERS[training.get("optim", DEFAULT_OPTIMIZER)]
    usual = optimizer.training_defaults.get("lr_scheduler_type", DEFAULT_SCHEDULE)
    return RecipeView(
        task=sections["task"],
        method=sections["method"],
        loss=loss,
        training=training,
        task_row=TASKS[sections["task"]],
        method_row=method_row(sections["method"].name),
        loss_row=None if loss is None else LOSSES[loss.name],
        optimizer_row=optimizer,
        schedule_row=SCHEDULES[training.get("lr_scheduler_type", usual)],
        sections={type(section): section for section in sections.values()},
    )


def conflicts(sections: Sections) -> Iterator[tuple[KeyPath, str]]:
    """Yield the key and the reason of every rule that the recipe breaks.

    Example:
        >>> from hftune.recipe.defaults import typed_sections
        >>> training = {"optim_args": "momentum"}  # a value is missing
        >>> tree = {"task": "text-generation", "model": "gpt2", "training": training}
        >>> [key for key, _ in conflicts(typed_sections(tree))]
        [('training', 'optim_args')]
    """
    view = recipe_view(sections)
    techniques: tuple[tuple[Choice | None, MethodRow | LossRow | None], ...] = (
        (view.method, view.method_row),
        (view.loss, view.loss_row),
    )
    for name, (choice, row) in zip(("method", "loss"), techniques, strict=True):
        if choice is not None and row is not None and not row.suits(view.task_row):
            suited = [task for task, other in TASKS.items() if row.suits(other)]
            yield (name,), f"{choice.name} goes with {', '.join(suited)} only"
    for key, tasks in option_tasks().items():
        if view.task not in tasks and _given(sections, key) is not None:
            yield tuple(key.split(".")), f"it goes with {', '.join(tasks)} only"
    own = () if view.loss_row is None else view.loss_row.rules
    for rule in (*view.method_row.rules, *own, *RULES):
        if rule.broken(view):
            yield tuple(rule.key.split(".")), rule.says
    for key in training_without_trainer(view):
        yield ("training", key), NO_TRAINER
    yield from option_problems(view)


def _given(sections: Mapping[str, object], key: str) -> object:
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
    """Return the page of the docs: techniques by task, then the rules.

    Example:
        >>> print(compatibility_page().splitlines()[0])
        # What goes with what
    """
    lines = ["# What goes with what", ""]
    lines += ["Made from the tables that the check itself reads; a test keeps both equal.", ""]
    lines += ["| technique | " + " | ".join(TASKS) + " |", "|---|" + "---|" * len(TASKS)]
    own = {name: row for name, row in ROWS.items() if row.labels or name in {**METHODS, **TUNERS}}
    for name, row in {**own, **LOSSES}.items():
        marks = ("yes" if row.suits(task) else "no" for task in TASKS.values())
        lines.append(f"| `{name}` | " + " | ".join(marks) + " |")
    lines += ["", "Every other PEFT type goes with every task, but for what is said below.", ""]
    lines += ["| key | why a recipe is refused |", "|---|---|"]
    lines += [f"| `{rule.key}` | {rule.says} |" for rule in (*OWN_RULES, *RULES)]
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
