# SPDX-License-Identifier: Apache-2.0
"""A plan and its pieces are frozen, and nobody writes to them or to the Trainer's arguments."""

import ast
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hftune import Recipe
from hftune.training.load_model import LoadedModel
from hftune.training.plan.objective import Objective
from hftune.training.plan.plan import Plan
from hftune.training.plan.prepare import prepare
from hftune.training.plan.pretrained import Pretrained
from hftune.training.plan.settings import Settings
from hftune.training.plan.splits import Splits

PACKAGE = Path(__file__).parents[3] / "hftune"
#: The two files in which arguments are made, or copied with other values.
WRITERS = ("training/plan/settings.py", "training/plan/arguments.py")
READ_ONLY = {"plan", "arguments"}
PIECES = (Plan, Settings, Pretrained, Splits, Objective, LoadedModel)


def names(node: ast.expr) -> Iterator[str]:
    """Yield the names in a chain such as ``self.plan.settings``."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        if isinstance(node, ast.Attribute):
            yield node.attr
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Name):
        yield node.id


def targets(node: ast.AST) -> Iterator[ast.expr]:
    """Yield what a statement assigns to or deletes, or ``setattr`` writes to."""
    if isinstance(node, ast.Assign | ast.Delete):
        for target in node.targets:
            yield from target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        yield node.target
    elif isinstance(node, ast.Call) and [*names(node.func)][:1] in (["setattr"], ["__setattr__"]):
        yield ast.Attribute(node.args[0], "", ast.Store())


def writes(source: str) -> list[int]:
    """Return the lines that write to an attribute or an item of a plan, or of arguments."""
    return [
        target.value.lineno
        for node in ast.walk(ast.parse(source))
        for target in targets(node)
        if isinstance(target, ast.Attribute | ast.Subscript) and READ_ONLY & {*names(target.value)}
    ]


def test_nobody_writes_to_a_plan_or_to_arguments() -> None:
    found = [
        f"{place}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if (place := path.relative_to(PACKAGE).as_posix()) not in WRITERS
        for line in writes(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "plan.loss = other",
        "plan.settings.arguments.seed = 1",
        "self.plan.splits.train, other = 1, 2",
        "arguments.max_steps += 1",
        "del plan.settings.recipe.training['seed']",
        "plan.splits.columns['text'] = 'body'",
        "setattr(plan.settings.arguments, name, value)",
        "object.__setattr__(plan, 'loss', other)",
    ],
)
def test_a_write_is_seen(line: str) -> None:
    assert writes(line) == [1]


@pytest.mark.parametrize("line", ["self.plan = plan", "plan = replace(plan, splits=splits)"])
def test_another_plan_is_no_write(line: str) -> None:
    assert writes(line) == []


@pytest.mark.parametrize("piece", PIECES)
def test_pieces_are_frozen(piece: type) -> None:
    assert dataclasses.is_dataclass(piece)
    assert piece.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_another_value_leaves_the_plan_as_it_was(make_recipe: Callable[..., Recipe]) -> None:
    plan = prepare(make_recipe())
    other = plan.with_arguments(learning_rate=0.5, output_dir="elsewhere")
    assert (other.context().learning_rate, other.settings.arguments.output_dir) == (
        0.5,
        "elsewhere",
    )
    assert plan.context().learning_rate == plan.settings.arguments.learning_rate != 0.5
    assert plan.settings.arguments.output_dir != "elsewhere"
    assert other.settings.arguments.device is plan.settings.arguments.device
    assert other.splits is plan.splits


def test_a_config_that_was_found_is_not_changed(make_recipe: Callable[..., Recipe]) -> None:
    from hftune.training.plan.pretrained import find_pretrained
    from hftune.training.plan.settings import resolve_settings

    recipe = make_recipe(regularization={"dropout": 0.25})
    plan = prepare(recipe)
    settings = resolve_settings(recipe)
    found = find_pretrained(settings, plan.objective.task)
    before = found.config.to_dict()
    configured = found.configured(settings, plan.objective.task)
    assert found.config.to_dict() == before
    assert configured.config.hidden_dropout_prob == 0.25 != before["hidden_dropout_prob"]
    assert configured.config.id2label == plan.pretrained.config.id2label
