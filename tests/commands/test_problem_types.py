# SPDX-License-Identifier: Apache-2.0
"""Several labels a text, and numbers: from a file to a run, and from the run to predictions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification

import hftune
from hftune.core.errors import HftuneError

COLOURS = ("red", "green", "blue")


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Texts that name the colours they are labelled with."""
    rows = []
    for number in range(80):
        here = [colour for bit, colour in enumerate(COLOURS) if number >> bit & 1]
        rows.append({"text": f"{' and '.join(here) or 'no'} paint {number}", "label": here})
    return _write(tmp_path / "several.jsonl", rows)


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """Texts and how many coins they speak of, in tenths."""
    rows = [{"text": "coin " * (n % 7) + f"row {n}", "score": n % 7 / 10} for n in range(80)]
    return _write(tmp_path / "numbers.jsonl", rows)


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("method", ["full", "lora"])
def test_several_labels(make_recipe: Callable[..., Any], several: Path, method: str) -> None:
    recipe = make_recipe(
        data={"path": str(several)},
        method=method,
        loss={"name": "bce_with_logits", "pos_weight": "balanced"},
        evaluation={"thresholds": "best_f1"},
        training={"max_steps": 60, "learning_rate": 1e-2, "eval_strategy": "epoch"},
    )
    run = hftune.train(recipe)
    assert run.metrics["eval_f1_macro"] > 0.7  # giving every label reaches 2/3
    assert set(run.metrics["eval_per_class"]) == set(COLOURS)

    loaded = hftune.load(run.path)
    thresholds = loaded.facts.task_options["thresholds"]
    assert thresholds == {
        name: pytest.approx(row["threshold"]) for name, row in run.metrics["eval_per_class"].items()
    }
    predicted = hftune.predict(loaded, str(several))
    for row in predicted:
        above = [
            name for name in loaded.facts.label_names if row["scores"][name] >= thresholds[name]
        ]
        assert row["prediction"] == above
    assert hftune.evaluate(loaded, str(several))["eval_samples"] == 80


@pytest.mark.parametrize("method", ["full", "lora"])
def test_numbers(make_recipe: Callable[..., Any], numbers: Path, method: str) -> None:
    recipe = make_recipe(
        data={"path": str(numbers)},
        method=method,
        training={"max_steps": 60, "learning_rate": 1e-2},
    )
    run = hftune.train(recipe)
    assert run.metrics["eval_r2"] > 0.3  # the mean reaches 0
    resolved = hftune.Recipe.load(run.path / "recipe.yaml")
    assert resolved.loss.name == "mse"
    assert resolved.training["metric_for_best_model"] == "loss"
    assert resolved.training["greater_is_better"] is False

    predicted = hftune.predict(hftune.load(run.path), str(numbers))
    auto = AutoModelForSequenceClassification
    if method == "lora":
        auto = AutoPeftModelForSequenceClassification
        assert "num_labels=1" in (run.model_path / "README.md").read_text()
        plain = auto.from_pretrained(str(run.model_path), num_labels=1).eval()
    else:
        plain = auto.from_pretrained(str(run.model_path)).eval()
    batch = run.tokenizer(predicted["text"][:5], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = plain(**batch).logits
    assert logits[:, 0].tolist() == pytest.approx(predicted["prediction"][:5], abs=1e-5)


def test_a_loss_that_does_not_fit_the_labels(
    make_recipe: Callable[..., Any], several: Path
) -> None:
    recipe = make_recipe(data={"path": str(several)}, loss="cross_entropy")
    with pytest.raises(HftuneError, match="cross_entropy goes with single_label_classification"):
        hftune.check(recipe)


def test_check_shows_labels(
    make_recipe: Callable[..., Any], several: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hftune.check(make_recipe(data={"path": str(several)}))
    shown = capsys.readouterr().err
    assert "problem type: multi_label_classification" in shown
    assert "['red', 'green']" in shown


def test_attention_of_a_regression_and_of_several_labels(
    make_recipe: Callable[..., Any], numbers: Path, several: Path, tmp_path: Path
) -> None:
    for name, data in (("number", numbers), ("several", several)):
        output_dir = str(tmp_path / name)
        run = hftune.train(
            make_recipe(data={"path": str(data)}, training={"output_dir": output_dir})
        )
        text = "red and green coin"
        told = hftune.explain(run, text).prediction
        row = hftune.predict(run, Dataset.from_list([{"text": text}]))[0]
        if name == "number":
            assert told["kind"] == "number"
            assert float(told["scores"][0]["name"]) == pytest.approx(row["prediction"], rel=1e-3)
        else:
            shares = {score["name"]: score["probability"] for score in told["scores"]}
            assert shares == pytest.approx(row["scores"], abs=1e-5)
