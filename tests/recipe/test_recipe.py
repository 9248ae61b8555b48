# SPDX-License-Identifier: Apache-2.0
"""Recipes from files and Python: YAML 1.2, overrides, defaults, and the resolved form."""

import re
from pathlib import Path

import pytest
from peft import LoraConfig
from ruamel.yaml import YAML
from transformers import TrainingArguments

from hftune import HftuneError, Recipe, RecipeError

GOOD = """\
task: text-classification
model: demo:minilm
data: demo:docstrings
method: {name: lora, r: 4}
training:
  learning_rate: 2e-4
  run_name: no
"""


def read_yaml(text: str) -> dict:
    return YAML(typ="safe", pure=True).load(text)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def test_yaml_1_2(good: Path) -> None:
    training = Recipe.load(good).training
    assert training["learning_rate"] == 0.0002
    assert training["run_name"] == "no"


def test_file_and_python_say_the_same(good: Path) -> None:
    built = Recipe(
        task="text-classification",
        model={"path": "demo:minilm"},
        data={"path": "demo:docstrings"},
        method={"name": "lora", "r": 4},
        training={"learning_rate": 2e-4, "run_name": "no"},
    )
    assert built == Recipe.load(good)


def test_numbers_are_plain_also_as_keys(tmp_path: Path) -> None:
    """A layer map of a file is that of Python, layer 0 included."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "task: text-classification\nmodel: {path: demo:minilm, attn_implementation: eager}\n"
        "data: demo:docstrings\ndistillation: {teacher: runs/a, attentions: {0: 2, 1: 5}}\n"
    )
    layers = Recipe.load(path).distillation.attentions
    assert layers == {0: 2, 1: 5}
    assert {type(number) for pair in layers.items() for number in pair} == {int}
    given = Recipe.load(path, ["distillation.attentions={0: 1}"]).distillation.attentions
    assert {type(number) for pair in given.items() for number in pair} == {int}


def test_overrides_reach_short_forms_and_absent_sections(good: Path) -> None:
    recipe = Recipe.load(good, ["method.r=16", "data.max_length=32", "loss.class_weights=balanced"])
    assert recipe.method.options["r"] == 16
    assert recipe.data.path == "demo:docstrings"
    assert recipe.data.max_length == 32
    assert recipe.loss.name == "cross_entropy"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("method.r", "an override reads key=value"),
        ("task.x=1", "task has no keys below it"),
        ("training.learning_rate.x=1", "no keys below it"),
        ("method.r=[1", "command line: method.r:1: broken YAML"),
        ("data.label_separator=,", """the shell, too: 'data.label_separator=","'"""),
        ("method.rr=1", "command line: method.rr: unknown key; did you mean r"),
        ("method.freeze_layers=1", "method.freeze_layers: unknown key; allowed: "),
        ("learning_rate=1", "unknown key here; did you mean training.learning_rate?"),
        ("regularization.weight_decay=1", "did you mean training.weight_decay?"),
        ("data.lora_alpha=1", "data.lora_alpha: unknown key here; did you mean method.lora_alpha?"),
        ("training.loss=focal", "did you mean the section loss?"),
    ],
)
def test_wrong_overrides(good: Path, override: str, says: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(says)):
        Recipe.load(good, [override])


def test_every_problem_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("task: x\nmodel: {path: a, dtyp: b}\ndata:\n  path: c\n  max_length: 0\n")
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    places = [problem.split(": ")[0].rpartition(":")[2] for problem in caught.value.problems]
    assert places == ["1", "2", "5"]


def test_the_resolved_recipe_is_the_same_recipe(good: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(good)
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.to_yaml())
    again = Recipe.load(path)
    assert read_yaml(again.to_yaml()) == read_yaml(recipe.to_yaml())
    assert again.method.options["r"] == 4
    assert "output_dir" not in path.read_text()


def test_resolved_defaults_are_the_classes_own(good: Path) -> None:
    """What the resolved recipe spells out changes nothing in the objects built from it."""
    resolved = read_yaml(Recipe.load(good).to_yaml())
    method = {key: value for key, value in resolved["method"].items() if key != "name"}
    assert LoraConfig(**method) == LoraConfig(r=4, target_modules="all-linear")
    spelled = TrainingArguments(output_dir="x", use_cpu=True, **{
        key: value for key, value in resolved["training"].items() if key != "use_cpu"})  # fmt: skip
    plain = {**Recipe.load(good).training, "run_name": None}
    short = TrainingArguments(output_dir="x", use_cpu=True, **plain)
    different = {
        key
        for key, value in spelled.to_dict().items()
        if value != short.to_dict()[key] and key not in ("logging_dir", "run_name")
    }
    assert different == set()


def test_missing_and_strange_files(tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("")
    with pytest.raises(HftuneError, match=r"no such recipe\nrecipes in .*there\.yaml"):
        Recipe.load(tmp_path / "here.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"task: caf\xe9\n")
    with pytest.raises(HftuneError, match="not UTF-8 at byte 9"):
        Recipe.load(tmp_path / "latin.yaml")


def test_evaluation_decides_what_is_saved() -> None:
    def training(**given: object) -> dict:
        data = given.pop("data", "demo:docstrings")
        return Recipe(
            task="text-classification", model="demo:minilm", data=data, training=given
        ).training

    assert training()["load_best_model_at_end"] is True
    assert training()["save_strategy"] == "epoch"
    steps = training(eval_strategy="steps", eval_steps=7)
    assert (steps["save_strategy"], steps["save_steps"]) == ("steps", 7)
    assert "save_steps" not in training(eval_strategy="steps", save_strategy="best")
    without = training(data={"path": "demo:docstrings", "validation_size": 0})
    assert without["eval_strategy"] == "no"
    assert without["load_best_model_at_end"] is False
    assert "metric_for_best_model" not in without
