# SPDX-License-Identifier: Apache-2.0
"""A first recipe: written for real files, passing the check, and never over another file."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

import hftune
from hftune import HftuneError, Recipe, RecipeError, cli
from hftune.recipe.schema_file import EDITOR_LINE

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.csv"
    teams = ["billing"] * 30 + ["returns"] * 8
    rows = "".join(f"{i},order {i} came late,{team}\n" for i, team in enumerate(teams))
    path.write_text("id,body,team\n" + rows)
    return path


def read(path: Path) -> dict:
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def test_written_recipe_passes_the_check(
    tickets: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hftune.init("tickets.csv", model=str(tiny_encoder))
    said = capsys.readouterr().err
    assert path == Path("tickets.yaml")
    assert read(path)["data"]["columns"] == {"text": "body", "label": "team"}
    assert read(path)["loss"]["class_weights"] == "balanced"
    assert "imbalanced, 3.75 to 1" in said
    assert "label = team: what it holds: 2 labels" in said
    assert "labels with fewer than 10 rows: returns" in said
    plan = hftune.check(Recipe.load(path))
    assert len(plan.splits.train.dataset) + len(plan.splits.validation.dataset) == 38


def test_conversations_and_both_files_of_a_chat(chat_file: Path, tiny_decoder: Path) -> None:
    path = hftune.init(str(chat_file), model=str(tiny_decoder), output=Path("sub/chat.yaml"))
    assert read(path)["task"] == "text-generation"
    hftune.check(Recipe.load(path))


def test_editors_find_a_schema_that_it_fits(tickets: Path) -> None:
    path = hftune.init(str(tickets), output=Path("a/r.yaml"))
    first = path.read_text().splitlines()[0]
    assert first.startswith(EDITOR_LINE)
    schema = json.loads((path.parent / first.removeprefix(EDITOR_LINE)).read_text())
    assert list(Draft202012Validator(schema).iter_errors(read(path))) == []
    (path.parent / "hftune.schema.json").write_text("mine")
    hftune.init(str(tickets), output=Path("a/other.yaml"))
    assert (path.parent / "hftune.schema.json").read_text() == "mine"


def test_in_the_source_tree_it_names_the_shipped_schema() -> None:
    from hftune.commands.init import _schema_path

    assert _schema_path(ROOT / "recipes" / "mine" / "r.yaml") == os.path.join("..", "schema.json")
    assert _schema_path(ROOT / "r.yaml") == os.path.join("recipes", "schema.json")


def test_no_file_is_replaced_without_force(tickets: Path) -> None:
    path = hftune.init(str(tickets))
    path.write_text("mine")
    with pytest.raises(HftuneError, match=r"tickets\.yaml exists"):
        hftune.init(str(tickets))
    assert path.read_text() == "mine"
    hftune.init(str(tickets), force=True)
    assert read(path)["task"] == "text-classification"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": None}, "no data named"),
        ({"data": "nowhere.csv"}, "nowhere.csv: no such file"),
        ({"data": "empty.csv"}, "the file is empty"),
        ({"data": "header.csv"}, "no rows"),
        ({"data": "ids.csv"}, "the rows suit no task"),
        ({"task": "text-clasification"}, "did you mean text-classification"),
        ({"columns": {"label": "tam"}}, "no column 'tam'"),
        ({"columns": {"lable": "team"}}, "it has no role 'lable'"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    options: dict, says: str, tickets: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("text,label\n")
    (tmp_path / "ids.csv").write_text("id\n1\n2\n3\n")
    with pytest.raises(HftuneError) as caught:
        hftune.init(**{"data": str(tickets), **options})
    assert says in caught.value.message
    assert not list(tmp_path.glob("*.yaml")) + list(tmp_path.glob("*.json"))


def test_an_unknown_method_is_named_as_in_a_recipe(tickets: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^method: unknown method 'lorra'; did you mean lora\?"):
        hftune.init(str(tickets), method="lorra")
    assert not list(tmp_path.glob("*.yaml"))


def test_it_asks_with_the_guess_as_default(
    tickets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["tickets.csv", "asked.yaml", "", "nothing", "id", "", "ia3"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(answers) + "\n"))
    path = hftune.init(ask=True)
    assert str(path) == "asked.yaml"
    assert read(path)["data"]["columns"] == {"text": "body", "label": "id"}
    assert read(path)["method"]["name"] == "ia3"
    assert read(path)["model"] == "demo:minilm"
    assert "'nothing' is none of them: id, body, team" in capsys.readouterr().err


def test_where_the_guess_fails_it_asks_for_task_and_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"some words {i},{i % 2},{i % 3}\n" for i in range(30))
    (tmp_path / "two.csv").write_text("x,y,z\n" + rows)
    answers = ["", "text-classification", "x", "z", "", "", "", ""]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(answers) + "\n"))
    path = hftune.init("two.csv", ask=True)
    assert read(path)["data"]["columns"] == {"text": "x", "label": "z"}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["tickets.csv", "--column", "label=team", "-y"], 0, "you named it"),
        (["tickets.csv", "--column", "label"], 2, "expected ROLE=COLUMN"),
        (["nowhere.csv"], 2, "no such file"),
    ],
)
def test_command_line(
    arguments: list[str], code: int, says: str, tickets: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["hftune", "init", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == code
    assert says in capsys.readouterr().err
