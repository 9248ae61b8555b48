# SPDX-License-Identifier: Apache-2.0
"""Sources of several shapes in one run: read by their own columns, split before they are mixed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

import hftune
from hftune import Recipe, RecipeError
from hftune.core.errors import HftuneError
from hftune.tasks.text_classification import TextClassification
from hftune.tasks.text_generation import TextGeneration
from hftune.training.plan.examples import read_examples
from hftune.training.plan.sources import hold_out


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """An alpaca, a sharegpt and a question-answer file; ten questions stand in the first two."""
    chats = [
        [{"from": "human", "value": f"ask {n}"}, {"from": "gpt", "value": f"other {n}"}]
        for n in range(50, 110)
    ]
    return {
        "alpaca": write(
            tmp_path / "alpaca.jsonl",
            [{"instruction": f"ask {n}", "input": "", "output": f"say {n}"} for n in range(60)],
        ),
        "sharegpt": write(tmp_path / "chats.jsonl", [{"conversations": chat} for chat in chats]),
        "pairs": write(
            tmp_path / "pairs.jsonl", [{"q": f"q {n}", "a": f"a {n}"} for n in range(30)]
        ),
    }


def items(files: dict[str, str], *weights: float | None) -> list[Any]:
    told = {"instruction": "q", "output": "a"}
    sources: list[dict[str, Any]] = [
        {"path": files["alpaca"]},
        {"path": files["sharegpt"]},
        {"path": files["pairs"], "columns": told},
    ]
    for source, weight in zip(sources, weights, strict=False):
        if weight is not None:
            source["weight"] = weight
    return sources


def questions(rows: Any) -> list[str]:
    return [messages[0]["content"] for messages in rows["messages"]]


@pytest.mark.parametrize("weights", [(), (0.2, 0.2, 0.6)])
def test_shapes_mix_and_nothing_leaks(
    make_recipe: Callable[..., Recipe], files: dict[str, str], weights: tuple[float, ...]
) -> None:
    data = {
        "path": items(files, *weights),
        "stopping_strategy": "all_exhausted",
        "validation_size": 0.2,
    }
    parts = read_examples(make_recipe("text-generation", data=data), TextGeneration(), None, None)
    assert parts.validation is not None
    train, validation = questions(parts.train), questions(parts.validation)
    assert not set(train) & set(validation)
    asked = {f"ask {n}" for n in range(110)} | {f"q {n}" for n in range(30)}
    assert set(train) | set(validation) == asked
    # Of the ten questions in two files each, both rows are on one side.
    assert all(validation.count(q) in (0, 2) for q in (f"ask {n}" for n in range(50, 60)))
    records = parts.sources
    assert isinstance(records, list)
    assert [record["rows"] for record in records] == [60, 60, 30]
    assert sum(record["drawn_rows"] for record in records) == len(train)
    assert sum(record["train_rows"] for record in records) + len(validation) == 150
    drawn = [sum(text.startswith("q ") for text in train), records[2]["drawn_rows"]]
    assert drawn[0] == drawn[1]
    if weights:
        assert records[2]["share"] == pytest.approx(0.6, abs=0.12)
    else:
        assert len(train) == len(set(train)) + 10 - sum(
            q in validation for q in (f"ask {n}" for n in range(50, 60))
        )


def test_rows_without_a_group_are_not_one_group(
    make_recipe: Callable[..., Recipe], files: dict[str, str], tmp_path: Path
) -> None:
    pages = [{"instruction": f"p {n}", "output": "x", "page": n // 10} for n in range(40)]
    grouped = {"path": write(tmp_path / "pages.jsonl", pages), "columns": {"group": "page"}}
    data = {"path": [grouped, files["alpaca"]], "validation_size": 0.25}
    parts = read_examples(make_recipe("text-generation", data=data), TextGeneration(), None, None)
    assert parts.validation is not None
    held_out = questions(parts.validation)
    assert len(held_out) == 25, "10 of a page, 15 of the rows without one"
    assert len({n // 10 for n in range(40) if f"p {n}" in held_out}) == 1


def test_trains_and_records(make_recipe: Callable[..., Recipe], files: dict[str, str]) -> None:
    data = {"path": items(files, None, 0.3), "max_length": 96}
    run = hftune.train(make_recipe("text-generation", data=data))
    sources = json.loads((run.path / "data.json").read_text())["sources"]
    assert [source["path"] for source in sources] == [files[name] for name in files]
    assert run.recipe.data == make_recipe("text-generation", data=data).data


def test_sources_of_other_shapes(make_recipe: Callable[..., Recipe], files: dict[str, str]) -> None:
    path = [files["alpaca"], {"path": files["pairs"], "columns": {"prompt": "q"}}]
    recipe = make_recipe("text-generation", data={"path": path})
    with pytest.raises(HftuneError, match=r"pairs.jsonl gives prompt, .* gives messages"):
        read_examples(recipe, TextGeneration(), None, None)
    path = [files["alpaca"], {"path": files["pairs"]}]
    recipe = make_recipe("text-generation", data={"path": path})
    with pytest.raises(HftuneError, match=r"pairs.jsonl: no column for messages"):
        read_examples(recipe, TextGeneration(), None, None)


def test_recipe_names_the_place_of_a_wrong_item(tmp_path: Path, tiny_decoder: Path) -> None:
    recipe = tmp_path / "mix.yaml"
    recipe.write_text(
        f"task: text-generation\nmodel: {tiny_decoder}\ndata:\n  path:\n    - a.jsonl\n"
        "    - path: b.jsonl\n      weigth: 0.3\n    - {path: c.jsonl, weight: 0}\n    - 7\n"
    )
    with pytest.raises(RecipeError) as caught:
        Recipe.load(recipe)
    assert [line.removeprefix(str(recipe)) for line in caught.value.problems] == [
        ":7: data.path[1].weigth: unknown key; did you mean weight?",
        ":8: data.path[2].weight: must be above 0, got 0",
        ":9: data.path[3]: expected a mapping or text, got 7",
    ]


@pytest.mark.parametrize(
    ("labels", "texts", "size", "message"),
    [
        (None, "abcd", 0.1, "data.validation_size: 0.1 of 4 rows is none"),
        (None, "aaaa", 0.5, "stay together, and here all rows do"),
        ("xyz", "abc", 1, "stay together, and each label has one text or group"),
        (None, "aaaaabbbbb", 2, "none of the 2 blocks that this makes fits the 2 rows wanted"),
    ],
)
def test_why_nothing_can_be_held_out(
    labels: str | None, texts: str, size: float, message: str
) -> None:
    columns = {"text": list(texts)} | ({} if labels is None else {"label": list(labels)})
    task = TextGeneration() if labels is None else TextClassification()
    with pytest.raises(RecipeError, match=message):
        hold_out(Dataset.from_dict(columns), task, size, seed=0)
