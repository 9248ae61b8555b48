# SPDX-License-Identifier: Apache-2.0
"""A finished run on new data: the figures of training again, and predictions row by row."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

import hftune
from hftune import HftuneError, Recipe


@pytest.mark.parametrize("task", ["text-classification", "text-generation"])
def test_evaluate_gives_what_training_gave(
    task: str, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    # Equal rows tie, and rounding in batches of another shape orders ties: average precision moves.
    given = Path(str(make_recipe(task).data.path)).read_text().splitlines()
    data = str(tmp_path / "rows.jsonl")
    Path(data).write_text("".join(f"{line}\n" for line in dict.fromkeys(given)))
    recipe = make_recipe(task, data={"path": data, "validation": data}, method="lora")
    run = hftune.train(recipe)
    metrics = hftune.evaluate(run.path, data, batch_size=7, output=tmp_path / "metrics.json")
    for name, value in metrics.items():
        if name in run.metrics and isinstance(value, float):
            assert value == pytest.approx(run.metrics[name], abs=1e-5), name
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


def test_predicted_labels_are_the_models(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = hftune.train(make_recipe(method="lora"))
    rows = tmp_path / "rows.csv"
    rows.write_text("text,id\nalpha red one,1\nblue,2\ngreen two three alpha four,3\n")
    output = tmp_path / "out.jsonl"
    hftune.predict(run.path, str(rows), output, batch_size=2)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["1", "2", "3"]
    model, tokenizer = run.model.eval(), run.tokenizer
    for line in lines:
        with torch.no_grad():
            logits = model(**tokenizer(line["text"], return_tensors="pt")).logits[0]
        assert line["prediction"] == run.task.label_names[int(logits.argmax())]
        expected = dict(zip(run.task.label_names, logits.softmax(-1).tolist(), strict=True))
        assert line["scores"] == pytest.approx(expected, abs=1e-5)
        assert line["score"] == max(line["scores"].values())


def test_generated_text_does_not_depend_on_the_batch(
    make_recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    run = hftune.train(make_recipe("text-generation", method="lora"))
    data = run.recipe.data.path
    alone = hftune.predict(run, data, batch_size=1, max_new_tokens=5)["prediction"][:]
    together = hftune.predict(run, data, batch_size=16, max_new_tokens=5)["prediction"][:]
    assert alone == together
    assert "chat template" not in capsys.readouterr().err
    hftune.predict(run, Dataset.from_list([{"prompt": "one two"}]), max_new_tokens=2)
    assert "reach it without its chat template" in capsys.readouterr().err


def test_unknown_labels_and_wrong_output_are_refused(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = hftune.train(make_recipe(method="lora"))
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\nalpha,purple\nblue,red\n")
    with pytest.raises(HftuneError, match="labels that training does not know: purple"):
        hftune.evaluate(run, str(rows))
    with pytest.raises(HftuneError, match=r"written as \.jsonl"):
        hftune.predict(run, str(rows), tmp_path / "out.csv")
    with pytest.raises(HftuneError, match="no finished model"):
        hftune.load(tmp_path)


def test_a_prompt_beyond_the_models_positions_is_cut_on_the_left(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The tiny decoder has 256 positions, and a byte is a token."""
    run = hftune.train(make_recipe("text-generation", method="lora"))
    end = "x" * 100 + " seven"
    rows = tmp_path / "long.jsonl"
    turns = [[{"role": "user", "content": start + end}] for start in ("a" * 600, "b" * 900)]
    rows.write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    texts = hftune.predict(run, str(rows), max_new_tokens=200)["prediction"][:]
    assert texts[0] == texts[1]  # what differed was cut off


def test_the_last_question_is_answered() -> None:
    from hftune.data.chat_template import open_question

    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    assert open_question([user, answer, user]) == [user, answer, user]
    assert open_question([user, answer]) == [user]


def test_plain_text_is_measured_in_blocks_and_continued(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps({"text": f"{n} is a number"}) + "\n" for n in range(40)))
    data = {"path": str(file), "block_size": 32}
    run = hftune.train(make_recipe("text-generation", data=data))
    loaded = hftune.load(run.path)
    assert loaded.metadata.task_options["block_size"] == 32
    metrics = hftune.evaluate(loaded, str(file))
    tokens = sum(len(f"{n} is a number") + 1 for n in range(40))  # bytes, and an EOS each
    blocks = -(-tokens // 32)
    assert metrics["eval_samples"] == blocks
    assert metrics["eval_tokens"] == tokens - blocks
    predictions = hftune.predict(loaded, str(file), max_new_tokens=4)
    assert predictions.column_names == ["text", "prediction"]


@pytest.mark.parametrize("task", ["text-classification", "text-generation"])
def test_chunks_change_nothing_and_outlive_a_crash(
    task: str,
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = hftune.train(make_recipe(task, method="lora", training={"max_steps": 1}))
    data, output = run.recipe.data.path, tmp_path / "out" / "rows.jsonl"
    whole = hftune.predict(run, data, batch_size=4, max_new_tokens=3)
    module = importlib.import_module("hftune.runs.predict")
    monkeypatch.setattr(module, "CHUNK", 7)
    parts = hftune.predict(run, data, output, batch_size=4, max_new_tokens=3)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert parts.column_names == whole.column_names
    assert parts["prediction"][:] == whole["prediction"][:]
    assert lines == parts.to_list()
    if task == "text-classification":
        expected = [list(row.values()) for row in whole["scores"]]
        assert [list(row.values()) for row in parts["scores"]] == [
            pytest.approx(row, abs=1e-6) for row in expected
        ]

    owner, calls = type(run.task), []
    predict = owner.predict

    def crash(*given: Any, **options: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(*given, **options)

    monkeypatch.setattr(owner, "predict", crash)
    output.write_text("what was here")
    with pytest.raises(KeyboardInterrupt):
        hftune.predict(run, data, output, batch_size=4, max_new_tokens=3)
    assert output.read_text() == "what was here"
    partial = output.with_name("rows.jsonl.partial")
    kept = [json.loads(line) for line in partial.read_text().splitlines()]
    assert [row["prediction"] for row in kept] == whole["prediction"][:14]
    assert "rows.jsonl.partial" in capsys.readouterr().err.replace("\n", "")


def test_what_batches_kept_is_put_together_in_their_order() -> None:
    evaluate = importlib.import_module("hftune.runs.evaluate")
    for number in range(1, 10):
        steps = [{"ids": np.full((2, 1 + n % 3), n)} for n in range(number)]
        together = evaluate._together(steps)["ids"]
        assert together[:, 0].tolist() == [n for n in range(number) for _ in range(2)]
        assert (together[0, 1:] == -100).all()  # padded to the longest
