# SPDX-License-Identifier: Apache-2.0
"""A stream trains each row once an epoch, deals rows out whole, and resumes to the bit."""

import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load_file

import hftune
from hftune import Recipe, RecipeError
from hftune.core.errors import HftuneError, RunError
from hftune.training.plan.prepare import prepare
from tests.stop_at import StopAt

ROWS = 50


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """Fifty numbered rows, so that a row is known by its tokens; one has nothing to train."""
    rows = [{"prompt": f"ask {n}: ", "completion": f"say {n}"} for n in range(ROWS)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def streamed(make_recipe: Callable[..., Recipe], path: Path, **options: Any) -> Recipe:
    data = {"path": str(path), "streaming": True, "max_length": 64, "shuffle_buffer_size": 16}
    data |= options.pop("data", {})
    if "validation" not in data:
        data.setdefault("validation_size", 0)
    return make_recipe("text-generation", options.pop("training", None), data=data, **options)


def said(plan: Any, rows: Any) -> list[str]:
    return [
        plan.pretrained.processor.decode([t for t in row["labels"] if t != -100]) for row in rows
    ]


EVERY = {f"say {n}<|eos|>" for n in range(ROWS)}


def test_an_epoch_has_each_row_once_and_the_next_another_order(
    make_recipe: Callable[..., Recipe], pairs_file: Path
) -> None:
    plan = prepare(streamed(make_recipe, pairs_file))
    rows = said(plan, islice(plan.splits.stream, 3 * ROWS))
    epochs = [rows[start : start + ROWS] for start in range(0, 3 * ROWS, ROWS)]
    assert all(set(epoch) == EVERY for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert rows == said(plan, islice(plan.splits.stream, 3 * ROWS)), "each reading begins the same"
    in_order = {"train_sampling_strategy": "sequential"}
    plan = prepare(streamed(make_recipe, pairs_file, training=in_order))
    assert said(plan, islice(plan.splits.stream, 2)) == ["say 0<|eos|>", "say 1<|eos|>"]


def test_processes_share_the_rows(make_recipe: Callable[..., Recipe], pairs_file: Path) -> None:
    plan = prepare(streamed(make_recipe, pairs_file))
    seen: Counter[str] = Counter()
    for process in range(2):
        plan.splits.stream.process, plan.splits.stream.processes = process, 2
        seen.update(said(plan, islice(plan.splits.stream, ROWS // 2)))
    assert seen == Counter(EVERY)


def test_the_head_is_held_out(make_recipe: Callable[..., Recipe], pairs_file: Path) -> None:
    plan = prepare(streamed(make_recipe, pairs_file, data={"validation_size": 10}))
    held_out = said(plan, plan.splits.validation.dataset)
    assert held_out == [f"say {n}<|eos|>" for n in range(10)]
    assert set(said(plan, islice(plan.splits.stream, 40))) == EVERY - set(held_out)
    assert plan.report()["streamed"] is True


def test_resumes_to_the_bit(
    make_recipe: Callable[..., Recipe], pairs_file: Path, tmp_path: Path
) -> None:
    steps = {
        "max_steps": 20,
        "save_strategy": "steps",
        "save_steps": 10,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "eval_strategy": "no",
    }
    outputs = [tmp_path / "whole", tmp_path / "broken"]
    recipes = [
        streamed(make_recipe, pairs_file, training={**steps, "output_dir": str(folder)})
        for folder in outputs
    ]
    hftune.train(recipes[0])
    with pytest.raises(KeyboardInterrupt):
        hftune.train(recipes[1], callbacks=[StopAt(12)])
    hftune.train(Recipe.load(outputs[1] / "recipe.yaml"), resume=True)
    whole, broken = (load_file(folder / "model" / "model.safetensors") for folder in outputs)
    assert all(torch.equal(tensor, broken[name]) for name, tensor in whole.items())


def test_a_wrong_row_far_in_is_named(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "a", "completion": "b"}] * 300
    rows[250] = {"prompt": "a", "completion": 3}
    rows[240] = {"prompt": "", "completion": ""}  # nothing to train, and no error
    path = tmp_path / "wrong.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = prepare(streamed(make_recipe, path))
    with pytest.raises(RunError, match=r"wrong.jsonl:251: column 'completion': is not text but 3"):
        list(islice(plan.splits.stream, 300))


def test_splits_of_a_data_set(
    make_recipe: Callable[..., Recipe], pairs_file: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """A folder with a file for each split is to datasets what a Hub repository is."""
    folder = tmp_path / "set"
    folder.mkdir()
    lines = pairs_file.read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:40]))
    (folder / "validation.jsonl").write_text("".join(lines[40:]))
    is_dir = Path.is_dir  # a folder is refused; this one is to pass as the Hub's
    monkeypatch.setattr(Path, "is_dir", lambda path: path != folder and is_dir(path))
    plan = prepare(streamed(make_recipe, folder, data={"validation": "validation"}))
    assert said(plan, plan.splits.validation.dataset) == [f"say {n}<|eos|>" for n in range(40, 50)]
    assert set(said(plan, islice(plan.splits.stream, 40))) == {f"say {n}<|eos|>" for n in range(40)}
    with pytest.raises(HftuneError, match=r"data.split: .* no 'test'; splits: train, validation"):
        prepare(streamed(make_recipe, folder, data={"split": "test"}))


@pytest.fixture
def labelled(
    make_recipe: Callable[..., Recipe], tiny_encoder: Path, tmp_path: Path
) -> Callable[..., Recipe]:
    """Build a recipe that streams labelled rows; regression if no labels are listed."""

    def build(
        rows: list[dict[str, Any]], training: dict[str, Any] | None = None, **data: Any
    ) -> Recipe:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {} if "label_names" in data else {"problem_type": "regression"}
        return make_recipe(
            model={"path": str(tiny_encoder), "config": config},
            data={"path": str(path), "streaming": True, "validation_size": 0, **data},
            training={"train_sampling_strategy": "sequential", **(training or {})},
            method="full",
        )

    return build


KINDS: dict[str, tuple[list[Any], dict[str, Any], list[Any]]] = {
    "one": (["b", "a", "c"], {"label_names": ["c", "b", "a"]}, [1, 2, 0]),
    "several": (
        [["b"], [], ["a", "b"]],
        {"label_names": ["a", "b"]},
        [[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]],
    ),
    "separated": (
        ["b", "", "a|b"],
        {"label_names": ["a", "b"], "label_separator": "|"},
        [[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]],
    ),
    "numbers": ([0.5, 2, "-1e1"], {}, [0.5, 2.0, -10.0]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_a_stream(labelled: Callable[..., Recipe], kind: str) -> None:
    """Each row is encoded as the whole file is, the later ones as the first ones."""
    labels, data, expected = KINDS[kind]
    if kind == "numbers":  # cells of one type each, as every file must have
        labels = [str(label) for label in labels]
    rows = [{"text": f"red alpha {n}", "label": labels[n % 3]} for n in range(300)]
    rows[270]["text"] = ""  # an empty text is a text
    plan = prepare(labelled(rows, **data))
    assert plan.num_classes() == len(data.get("label_names", "1"))
    streamed_rows = list(islice(plan.splits.stream, 300))
    assert [row["labels"] for row in streamed_rows] == expected * 100
    whole = plan.objective.task.preprocess(
        plan.objective.task.select(Dataset.from_list(rows), plan.splits.examples.columns),
        plan.pretrained.processor,
        None,
    )
    assert streamed_rows == list(whole.dataset)


def test_streamed_labels_train_and_resume(labelled: Callable[..., Recipe], tmp_path: Path) -> None:
    labels, data, _ = KINDS["several"]
    rows = [{"text": f"red alpha {n}", "label": labels[n % 3]} for n in range(30)]
    steps = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "no",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "train_sampling_strategy": "random",
    }
    outputs = [tmp_path / "whole", tmp_path / "broken"]
    recipes = [
        labelled(rows, {**steps, "output_dir": str(output)}, shuffle_buffer_size=8, **data)
        for output in outputs
    ]
    hftune.train(recipes[0])
    with pytest.raises(KeyboardInterrupt):
        hftune.train(recipes[1], callbacks=[StopAt(3)])
    run = hftune.train(Recipe.load(outputs[1] / "recipe.yaml"), resume=True)
    whole, broken = (load_file(folder / "model" / "model.safetensors") for folder in outputs)
    assert all(torch.equal(tensor, broken[name]) for name, tensor in whole.items())
    assert hftune.load(run.path).metadata.label_names == data["label_names"]


@pytest.mark.parametrize(
    ("label", "others", "data", "message"),
    [
        ("d", "a", {"label_names": ["a", "b"]},
         "column 'label': has a label that data.label_names lacks: 'd'"),
        (["a", "d"], ["a"], {"label_names": ["a", "b"]},
         "column 'label': has a label that data.label_names lacks: 'd'"),
        (None, "a", {"label_names": ["a", "b"]}, "column 'label': no label"),
        (3, "a", {"label_names": ["a", "3"]}, "column 'label' mixes int and str"),
        ("x", "1.5", {}, "column 'label': is no finite number: 'x'"),
        ("", "1.5", {}, "column 'label': has no number"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("at", [20, 250], ids=["first rows", "far in"])
def test_a_wrong_label_is_named(
    labelled: Callable[..., Recipe],
    label: Any,
    others: Any,
    data: Any,
    message: str,
    at: int,
) -> None:
    rows = [{"text": f"red {n}", "label": others} for n in range(300)]
    rows[at]["label"] = label
    rows[at - 1]["text"] = ""  # alone it would be all that is empty, and is no mistake
    recipe = labelled(rows, **data)
    match = re.escape(f"rows.jsonl:{at + 1}: {message}") + "$"
    with pytest.raises(HftuneError) as caught:
        list(islice(prepare(recipe).splits.stream, 300))
    assert re.search(match, caught.value.message)
    assert caught.value.exit_code == (2 if at < 200 else 1)


def test_a_stream_of_a_data_set_knows_its_class_names(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: Any
) -> None:
    """Ids of a ClassLabel are read as its names, whatever the order of the recipe's list."""
    features = Features(text=Value("string"), label=ClassLabel(names=["a", "b"]))
    (folder := tmp_path / "set").mkdir()
    given = {"text": [f"red {n}" for n in range(20)], "label": [n % 2 for n in range(20)]}
    Dataset.from_dict(given, features=features).to_parquet(folder / "train.parquet")
    is_dir = Path.is_dir  # a folder is refused; this one is to pass as the Hub's
    monkeypatch.setattr(Path, "is_dir", lambda path: path != folder and is_dir(path))
    recipe = make_recipe(
        data={"path": str(folder), "streaming": True, "validation_size": 4}
        | {"label_names": ["b", "a"]},
        training={"train_sampling_strategy": "sequential"},
    )
    plan = prepare(recipe)
    assert [row["labels"] for row in islice(plan.splits.stream, 4)] == [1, 0, 1, 0]
    assert plan.splits.validation.dataset["labels"][:] == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "list them in data.label_names, or set model.config.problem_type: regression"),
        ({"data": {"label_names": ["a"]},
          "model": {"path": "x", "config": {"problem_type": "regression"}}},
         "regression has numbers, not labels"),
        ({"data": {"label_names": ["a"]},
          "loss": {"name": "bce_with_logits", "pos_weight": "balanced"}},
         "loss.pos_weight: balanced counts all rows, which a stream cannot; give the weights"),
        ({"data": {"label_names": ["a"]},
          "loss": {"name": "cross_entropy", "class_weights": "balanced"}},
         "loss.class_weights: weights by name are counted over all rows, which a stream cannot"),
        ({"data": {"label_names": ["a"]}, "training": {"max_steps": -1}},
         "a stream has no length: set training.max_steps"),
    ],
)  # fmt: skip
def test_what_a_stream_of_labels_cannot(
    make_recipe: Callable[..., Recipe], options: dict[str, Any], message: str
) -> None:
    data = {"path": "a.jsonl", "streaming": True, "validation_size": 0, **options.get("data", {})}
    with pytest.raises(RecipeError, match=message):
        make_recipe(**{**options, "data": data})


def test_no_stream(make_recipe: Callable[..., Recipe], pairs_file: Path) -> None:
    with pytest.raises(HftuneError, match=r"data.name: .*pairs.jsonl is a file"):
        prepare(streamed(make_recipe, pairs_file, data={"name": "en"}))
    with pytest.raises(HftuneError, match="is no file and no Hub data set"):
        prepare(streamed(make_recipe, Path("demo:docstrings")))


def test_too_short(make_recipe: Callable[..., Recipe], pairs_file: Path) -> None:
    with pytest.raises(HftuneError, match="50 rows, of which 50 are to be held out"):
        prepare(streamed(make_recipe, pairs_file, data={"validation_size": 50}))


@pytest.mark.parametrize(
    ("data", "training", "message"),
    [
        ({}, {"max_steps": -1}, "a stream has no length: set training.max_steps"),
        ({"validation_size": 0.1}, {}, "a stream has no length to take a share of"),
        ({}, {"train_sampling_strategy": "group_by_length"}, "which a stream does not"),
        ({}, {"dataloader_num_workers": 2}, "a stream is read by the process that trains"),
        ({"streaming": False}, {}, "rows that are not streamed are shuffled whole"),
        ({"path": [{"path": "a.jsonl"}]}, {}, "a list of sources cannot be streamed yet"),
    ],
)
def test_what_a_stream_cannot(
    make_recipe: Callable[..., Recipe], pairs_file: Path, data: Any, training: Any, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        streamed(make_recipe, pairs_file, data=data, training=training)


def test_balanced_weights_are_refused(make_recipe: Callable[..., Recipe], pairs_file: Path) -> None:
    loss = {"name": "cross_entropy", "class_weights": "balanced"}
    with pytest.raises(RecipeError, match="counted over all rows, which a stream cannot"):
        streamed(make_recipe, pairs_file, loss=loss)
