# SPDX-License-Identifier: Apache-2.0
"""What can be named: whole, each with its line, and true."""

from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
from peft import PeftType
from transformers import SchedulerType, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from hftune import HftuneError, Recipe, RecipeError
from hftune.commands.list import (
    KINDS,
    Entry,
    count_names,
    list_,
    listing,
    plot_pacings,
    plot_schedules,
)
from hftune.methods import METHODS
from hftune.methods.peft import peft_configs
from hftune.methods.peft_types import NOT_FROM_A_RECIPE, PEFT_TYPES
from hftune.methods.tuners import TUNERS
from hftune.models.demo_models import DEMO_MODELS
from hftune.optimization.optimizers import OPTIMIZERS
from hftune.optimization.schedules import SCHEDULES
from hftune.recipe.json_schema import recipe_schema
from hftune.recipe.training_fields import Schema
from hftune.tasks import TASKS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def kinds() -> dict[str, list[Entry]]:
    return list_()


def names(entries: list[Entry]) -> set[str]:
    return {entry.name for entry in entries}


def test_everything_has_one_line_and_known_tasks(kinds: dict[str, list[Entry]]) -> None:
    assert set(kinds) == set(KINDS)
    for kind, entries in kinds.items():
        assert len(names(entries)) == len(entries) > 0, kind
        for entry in entries:
            assert 10 <= len(entry.summary) <= 160, entry
            assert "\n" not in entry.summary
            assert set(entry.tasks) <= set(TASKS), entry


def test_every_installed_peft_type_has_a_line(kinds: dict[str, list[Entry]]) -> None:
    installed = {kind.value.lower() for kind in PeftType}
    assert (
        set(PEFT_TYPES) == set(peft_configs()) - set(TUNERS) == installed - set(NOT_FROM_A_RECIPE)
    )
    assert names(kinds["methods"]) == set(PEFT_TYPES) | set(METHODS) | set(TUNERS)
    shown = {entry.name: entry.summary for entry in kinds["methods"]}
    assert {name: shown[name] for name in PEFT_TYPES} == {
        name: row.summary for name, row in PEFT_TYPES.items()
    }


def test_the_docs_page_says_the_same_of_peft_types() -> None:
    page = (ROOT / "docs" / "methods" / "peft.md").read_text(encoding="utf-8")
    for name, row in PEFT_TYPES.items():
        assert f"| `{name}` | {row.summary.removesuffix('.')} |".lower() in page.lower(), name


def test_what_a_method_leaves_is_said(kinds: dict[str, list[Entry]]) -> None:
    left = {entry.name: entry.leaves for entry in kinds["methods"]}
    assert {left["full"], left["relora"]} == {"a whole model"}
    assert (left["lora"], left["lily"]) == ("an adapter", "an adapter that cannot be merged")
    assert left["probe"] == "a fitted classifier"
    assert "[leaves an adapter that" in listing({"methods": kinds["methods"]})
    assert not any(entry.leaves for entry in kinds["losses"])


def test_optimizers_and_schedules_are_those_of_transformers(
    kinds: dict[str, list[Entry]],
) -> None:
    assert {kind.value for kind in OptimizerNames} == {
        name for name, row in OPTIMIZERS.items() if row.target is None
    }
    assert {kind.value for kind in SchedulerType} == {
        name for name, row in SCHEDULES.items() if not row.own
    }
    assert set(OPTIMIZERS) == names(kinds["optimizers"])
    assert set(SCHEDULES) == names(kinds["schedules"])


@pytest.mark.parametrize("name", [kind.value for kind in OptimizerNames])
def test_an_optimizer_asks_for_the_package_that_is_listed(name: str, tmp_path: Path) -> None:
    """Transformers makes those whose package is here, and refuses the others."""
    arguments = TrainingArguments(
        output_dir=str(tmp_path), optim=name, optim_target_modules=["x"], use_cpu=True
    )
    package = OPTIMIZERS[name].package
    if package is None or package in {item.name for item in distributions()}:
        Trainer.get_optimizer_cls_and_kwargs(arguments, torch.nn.Linear(1, 1))
    else:
        with pytest.raises((ImportError, ValueError)) as caught:
            Trainer.get_optimizer_cls_and_kwargs(arguments, torch.nn.Linear(1, 1))
        plain = str(caught.value).lower().replace("_", "-")
        assert package.replace("_", "-").split("-")[0] in plain


@pytest.mark.parametrize("task", list(TASKS))
def test_listed_tasks_are_those_that_a_recipe_is_taken_for(
    task: str, kinds: dict[str, list[Entry]]
) -> None:
    for kind, section in (("methods", "method"), ("losses", "loss")):
        for entry in kinds[kind]:
            recipe = {"task": task, "model": "m", "data": "d", section: entry.name}
            if entry.tasks and task not in entry.tasks:
                with pytest.raises(RecipeError, match=f"{section}: "):
                    Recipe(**recipe)
            elif kind == "methods":
                Recipe(**recipe)


def test_recipes_are_where_the_list_says(
    kinds: dict[str, list[Entry]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder in (ROOT, tmp_path):
        monkeypatch.chdir(folder)
        entries = list_("recipes")["recipes"]
        assert all(Path(entry.name).is_file() for entry in entries)
        files = {path.resolve() for path in (ROOT / "recipes").rglob("*.yaml")}
        assert files <= {Path(entry.name).resolve() for entry in entries}


def test_demo_models_and_one_kind_alone(kinds: dict[str, list[Entry]]) -> None:
    assert names(kinds["models"]) == {f"demo:{name}" for name in DEMO_MODELS}
    assert list_("tasks") == {"tasks": kinds["tasks"]}


@pytest.mark.draws
def test_schedules_are_drawn(tmp_path: Path) -> None:
    plot_schedules(tmp_path / "schedules.svg")
    drawn = (tmp_path / "schedules.svg").read_text()
    assert all(f"<!-- {name}" in drawn for name in SCHEDULES)
    with pytest.raises(HftuneError, match="no picture"):
        plot_schedules(tmp_path / "schedules.txt")
    with pytest.raises(HftuneError, match="is no folder"):
        plot_schedules(tmp_path / "absent" / "schedules.png")


@pytest.mark.draws
def test_pacings_are_drawn(tmp_path: Path) -> None:
    plot_pacings(tmp_path / "pacings.svg")
    drawn = (tmp_path / "pacings.svg").read_text()
    assert all(f"<!-- {name}" in drawn for name in names(list_("pacings")["pacings"]))
    with pytest.raises(HftuneError, match="no picture"):
        plot_pacings(tmp_path / "pacings.txt")


def test_tables_are_what_a_recipe_takes(kinds: dict[str, list[Entry]]) -> None:
    """Samplings, difficulties, pacings and regularizations, against the schema of a recipe."""
    properties = recipe_schema()["properties"]
    data = properties["data"]["anyOf"][1]["properties"]
    choices = {name: named_in(data[name]) for name in ("sampling", "curriculum")}
    assert names(kinds["samplings"]) == set(choices["sampling"]["name"]["enum"])
    assert names(kinds["difficulties"]) == set(choices["curriculum"]["name"]["enum"])
    assert names(kinds["pacings"]) == set(choices["curriculum"]["pacing"]["enum"])
    assert names(kinds["regularizations"]) == set(properties["regularization"]["properties"])


def named_in(key: Schema) -> Schema:
    """The fields of the mapping that a key takes."""
    return next(form["properties"] for form in key["anyOf"] if "properties" in form)


def test_all_are_counted(kinds: dict[str, list[Entry]]) -> None:
    line = count_names(kinds)
    assert line.startswith(f"{sum(map(len, kinds.values()))} names: ")
    assert f"{len(OPTIMIZERS)} optimizers, {len(SCHEDULES)} schedules" in line


def test_unknown_kind_is_named() -> None:
    with pytest.raises(HftuneError, match=r"unknown kind 'method'; did you mean methods\?"):
        list_("method")


def test_listing_for_people() -> None:
    entries = [
        Entry(name="a", summary="First."),
        Entry(name="long", summary="Second.", tasks=("fill-mask",), package="torchao"),
    ]
    assert listing({"things": entries}) == (
        "things (2)\n  a     First.\n  long  Second. [fill-mask] [needs torchao]"
    )
