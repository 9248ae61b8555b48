# SPDX-License-Identifier: Apache-2.0
"""Cleaned recipes and configs mean the same elsewhere and name no folder of this machine."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hftune.core.errors import HftuneError
from hftune.hub.sanitize import clean_json, clean_recipe, last_name, public_base
from hftune.recipe.recipe import Recipe

RECIPE = """
task: text-classification
model: {path: MODEL, revision: null}
data:
  path: [/data/a.csv, ../b.jsonl, c/d.parquet, 'D:\\data\\e.csv']
  validation: VALIDATION
method: lora
training:
  seed: 7
  deepspeed: /etc/mine/zero.json
  push_to_hub: true
  hub_model_id: me/x
  hub_revision: second
  learning_rate: 1e-4
  # a comment
"""


def cleaned(**values: str) -> dict:
    text = RECIPE
    for name, value in {"MODEL": "me/base", "VALIDATION": "me/rows", **values}.items():
        text = text.replace(name, value)
    return YAML(typ="safe").load(clean_recipe(text, "base"))


def test_recipe() -> None:
    tree = cleaned()
    assert tree["data"]["path"] == ["a.csv", "b.jsonl", "d.parquet", "e.csv"]
    assert tree["model"]["path"] == "me/base"
    assert tree["data"]["validation"] == "me/rows"
    assert tree["training"] == {"seed": 7, "deepspeed": "zero.json", "learning_rate": 1e-4}
    text = clean_recipe(RECIPE, "base")
    assert text.startswith("# Local paths")
    assert "# a comment" in text


@pytest.mark.parametrize("path", ["/opt/models/base", "./base", "a/b/c", "~/base"])
def test_local_model_goes_by_the_public_name(path: str) -> None:
    assert cleaned(MODEL=path)["model"]["path"] == "base"


@pytest.mark.parametrize(
    ("given", "expected"),
    [("demo:docstrings", "demo:docstrings"), ("/x/*.csv", "'*.csv'"), ("validation", "validation")],
)
def test_validation(given: str, expected: str) -> None:
    assert cleaned(VALIDATION=f"'{given}'")["data"]["validation"] == expected.strip("'")


def test_cleaned_recipe_is_a_recipe(tmp_path: Path) -> None:
    recipe = Recipe(
        task="text-classification", model="me/base", data="me/rows",
        training={"push_to_hub": True, "hub_model_id": "me/x"},
    )  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(clean_recipe(recipe.to_yaml(), "me/base"))
    again = Recipe.load(tmp_path / "recipe.yaml")
    assert again.model == recipe.model
    assert again.data == recipe.data
    assert not {"push_to_hub", "hub_model_id"} & again.training.keys()
    assert not (tmp_path / "recipe.yaml").read_text().startswith("#")


def test_base_of_an_adapter_is_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    for local in (str(tmp_path), "./x", "demo:smollm2", "models/base"):
        with pytest.raises(HftuneError, match="is not on the Hub") as error:
            public_base(local, adapter=True)
        assert "--base" in str(error.value.hint)
        assert public_base(local, adapter=True, named="me/same") == "me/same"
    assert public_base("me/base", adapter=True) == "me/base"
    assert public_base("demo:minilm", adapter=True) == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("base", "expected"),
    [("/a/b", "b"), ("demo:smollm2", "demo:smollm2"), ("me/base", "me/base")],
)
def test_base_of_a_whole_model(base: str, expected: str) -> None:
    assert public_base(base, adapter=False) == expected


def test_last_name() -> None:
    assert last_name("/a/b/") == "b"
    assert last_name("/") == "local"
    assert last_name("file:///a/b.csv") == "b.csv"


def test_json() -> None:
    text = json.dumps({"_name_or_path": "/a", "is_local": True, "hidden_size": 3, "revision": None})
    assert json.loads(clean_json(text, revision="x")) == {"hidden_size": 3, "revision": "x"}
