# SPDX-License-Identifier: Apache-2.0
"""The exported schema: standard, current, and of one mind with hftune's own check."""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

import hftune
from hftune.commands.schema import schema_text
from hftune.core.errors import RecipeError
from hftune.core.shipped import shipped_folder
from hftune.recipe.json_schema import choice_names, recipe_schema
from hftune.recipe.schema_file import EDITOR_LINE, SCHEMA_FILE, standard_schema
from hftune.recipe.validate import check
from hftune.recipe.yaml_source import Source, load_source

RECIPES = sorted(shipped_folder("recipes").rglob("*.yaml"))
SHIPPED = shipped_folder("recipes") / SCHEMA_FILE
#: JSON Schema takes 1.0 for a whole number and YAML's .inf for a number; hftune takes neither.
VALUES = ["x", "no", "auto", 0, 1, -1, 0.5, 2.5, -0.5, 10**6, True, False, None, [], ["x"], [1],
          {}, {"x": 1}, [[]]]  # fmt: skip
MISTAKES = {
    "misspelt section": {"trainin": {}},
    "misspelt key": {"training": {"learning_rte": 1}},
    "key of another section": {"model": {"path": "m", "max_length": 3}},
    "text for a number": {"training": {"num_train_epochs": "three"}},
    "yes for true": {"training": {"bf16": "yes"}},
    "rate of zero": {"training": {"learning_rate": 0}},
    "number of steps": {"training": {"max_steps": 0}},
    "refused field": {"training": {"hub_token": "x"}},
    "unknown task": {"task": "text-clasification"},
    "unknown method": {"method": "lorra"},
    "method without name": {"method": {"r": 8}},
    "rank of zero": {"method": {"name": "lora", "r": 0}},
    "option of another method": {"method": {"name": "full", "r": 8}},
    "unknown loss": {"loss": {"name": "focl"}},
}
OWN = recipe_schema()
GOOD = {"task": "text-classification", "model": "m", "data": "d"}


@pytest.fixture(scope="module")
def standard() -> Draft202012Validator:
    return Draft202012Validator(hftune.schema())


def refused(tree: dict[str, Any]) -> bool:
    try:
        check(Source(tree=tree), OWN)
    except RecipeError:
        return True
    return False


def test_it_is_standard_json_schema(standard: Draft202012Validator) -> None:
    Draft202012Validator.check_schema(standard.schema)
    assert "alsoAllowed" not in json.dumps(standard.schema)


def test_also_allowed_becomes_an_alternative() -> None:
    own = {"$schema": "s", "title": "t", "type": "integer", "minimum": 1, "alsoAllowed": [-1],
           "default": -1, "description": "Steps."}  # fmt: skip
    exported = standard_schema(own)
    assert exported["anyOf"][1] == {"enum": [-1]}
    assert exported["default"] == -1
    assert "default" not in exported["anyOf"][0]


def test_shipped_schema_is_that_of_the_tested_set() -> None:
    renew = "renew it: hftune schema --output recipes/schema.json"
    assert SHIPPED.read_text(encoding="utf-8") == schema_text(hftune.schema()), renew


def test_it_is_written_to_a_file(tmp_path: Path) -> None:
    exported = hftune.schema(tmp_path / "new" / "schema.json")
    assert json.loads((tmp_path / "new" / "schema.json").read_text()) == exported


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_recipe_is_valid_and_tells_editors_so(path: Path, standard: Draft202012Validator) -> None:
    text = path.read_text(encoding="utf-8")
    assert list(standard.iter_errors(YAML(typ="safe", pure=True).load(text))) == []
    relative = os.path.relpath(SHIPPED, path.parent)
    assert f"{EDITOR_LINE}{relative}\n" in text.partition("task:")[0]


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_refused_by_both(name: str, standard: Draft202012Validator) -> None:
    tree = {**GOOD, **MISTAKES[name]}
    assert refused(tree)
    assert not standard.is_valid(tree)


Place = tuple[dict[str, Any], str, str, dict[str, Any]]


def places(exported: dict[str, Any]) -> Iterator[Place]:
    """Yield a recipe, a section, a key in it, and the schema of that section's form.

    Keys that are alike in several methods come once.
    """
    sections = exported["properties"]
    for name in ("model", "data", "training"):
        for key in object_keys(sections[name]):
            start = {} if name == "training" else {"path": "p"}
            yield {**GOOD, name: start}, name, key, sections[name]
    for section in ("method", "loss"):
        different: dict[str, Place] = {}
        for name, option in choice_names(sections[section]).items():
            for key, field in option["properties"].items():
                place = ({**GOOD, section: {"name": name}}, section, key, option)
                different[f"{key} {json.dumps(field)}"] = place
        yield from different.values()


def object_keys(schema: dict[str, Any]) -> list[str]:
    options = [schema, *schema.get("anyOf", ())]
    return [key for option in options for key in option.get("properties", ())]


def test_every_key_with_every_value_is_judged_alike(standard: Draft202012Validator) -> None:
    apart, count, wrong = [], 0, 0
    for start, section, key, form in places(standard.schema):
        validator = Draft202012Validator(form)
        for value in VALUES:
            tree = {**start, section: {**start[section], key: value}}
            ours = refused(tree)
            count, wrong = count + 1, wrong + ours
            if ours == validator.is_valid(tree[section]):
                apart.append((section, tree[section], ours))
    assert apart == []
    assert 0.2 < wrong / count < 0.9  # both kinds are there


@pytest.mark.parametrize("section", OWN["properties"])
def test_every_section_is_judged_alike(section: str, standard: Draft202012Validator) -> None:
    for value in VALUES:
        tree = {**GOOD, section: value}
        assert standard.is_valid(tree) == (not refused(tree)), value


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_changed_recipes_are_judged_alike(path: Path, standard: Draft202012Validator) -> None:
    whole = load_source(path).tree
    assert standard.is_valid(whole)
    for section, content in whole.items():
        inner = content if isinstance(content, dict) else {}
        for keys in [(section,), *((section, key) for key in inner)]:
            for change in ("leave out", "misspell"):
                tree = copy.deepcopy(whole)
                place = tree if len(keys) == 1 else tree[section]
                value = place.pop(keys[-1])
                if change == "misspell":
                    place[keys[-1] + "x"] = value
                assert standard.is_valid(tree) == (not refused(tree)), (keys, change)
