# SPDX-License-Identifier: Apache-2.0
"""The first recipe: read back as meant, whatever the names, and true in its comments."""

from dataclasses import replace

import pytest
from ruamel.yaml import YAML

from hftune import Recipe
from hftune.methods import method_row
from hftune.recipe.starter import Draft, write_recipe
from hftune.tasks import TASKS

DRAFT = Draft(
    file="t.yaml", schema="s.json", task="text-classification", model="demo:minilm", method="lora",
    data="t.csv", rows=300, columns={"text": "message", "label": "team"},
    labels={"a": 200, "b": 100},
)  # fmt: skip


def read(text: str) -> dict:
    return YAML(typ="safe", pure=True).load(text)


@pytest.mark.parametrize(
    "name",
    ["plain", "two words", "a: b", "ends:", "#hash", "no", "null", "true", "~", ".5", ".inf",
     "1e5", "007", "- dash", "[x]", "{x}", "'", '"', "\\", "é ü 你", "a\tb", "*star", "&and",
     "!bang", "...", "2024-01-01", " lead", "", "@at", "%", "|", ">", "a/b-c.csv",
     "demo:docstrings", "x,y", "a/very/long/path/" * 9],
)  # fmt: skip
def test_names_come_back(name: str) -> None:
    text = write_recipe(replace(DRAFT, data=name, model=name, columns={"text": name, "label": "l"}))
    tree = read(text)
    assert tree["data"]["path"] == tree["model"] == tree["data"]["columns"]["text"] == name


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", ["lora", "full", "ia3"])
@pytest.mark.parametrize("has_validation", [False, True])
def test_it_is_a_valid_recipe(task: str, method: str, has_validation: bool) -> None:
    draft = replace(DRAFT, task=task, method=method, has_validation=has_validation, labels={})
    recipe = Recipe(**read(write_recipe(draft)))
    assert recipe.task == task
    assert recipe.method.name == method
    assert {key: recipe.method.options[key] for key, *_ in method_row(method).starter_options} == {
        key: value for key, value, _ in method_row(method).starter_options
    }


def test_defaults_named_in_it_are_those_without_it() -> None:
    """What the recipe writes of ``training`` is what it would be if left out, but for epochs."""
    training = read(write_recipe(replace(DRAFT, rows=10**6)))["training"]
    bare = Recipe(task="text-classification", model="m", data="d").training
    assert {key: bare[key] for key in training} == training


def test_imbalance_switches_the_weights_on() -> None:
    assert "loss" not in read(write_recipe(DRAFT))
    assert "# loss:" in write_recipe(DRAFT)
    skewed = write_recipe(replace(DRAFT, labels={"a": 900, "b": 300}))
    assert read(skewed)["loss"] == {"name": "cross_entropy", "class_weights": "balanced"}
    assert "has 3 times the rows" in skewed
    assert "loss" not in write_recipe(replace(DRAFT, labels={}))


@pytest.mark.parametrize(("rows", "epochs"), [(10, 10), (1000, 5), (2000, 3), (10**6, 3)])
def test_few_rows_are_passed_over_more_often(rows: int, epochs: int) -> None:
    assert replace(DRAFT, rows=rows).epochs == epochs
    assert read(write_recipe(replace(DRAFT, rows=rows)))["training"]["num_train_epochs"] == epochs


def test_every_key_has_a_comment() -> None:
    draft = replace(DRAFT, reasons={"text": "its name", "label": "its name"})
    lines = [line for line in write_recipe(draft).splitlines() if not line.startswith("#")]
    without = [line for line in lines if " # " not in line]
    assert without == ["data:", "method:"]


def test_commands_are_quoted_for_a_shell() -> None:
    assert "# hftune train 'my file.yaml'\n" in write_recipe(replace(DRAFT, file="my file.yaml"))
