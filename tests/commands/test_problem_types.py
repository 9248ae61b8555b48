# SPDX-License-Identifier: Apache-2.0
"""Several labels a text, and numbers: from a file to a run, and from the run to predictions."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification

import hftune
from hftune.core.errors import HftuneError, RecipeError
from hftune.training.plan.prepare import prepare

WORDS = ("one", "two", "three", "four", "five", "six", "seven")
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
    thresholds = loaded.metadata.task_options["thresholds"]
    assert thresholds == {
        name: pytest.approx(row["threshold"]) for name, row in run.metrics["eval_per_class"].items()
    }
    predicted = hftune.predict(loaded, str(several))
    for row in predicted:
        above = [
            name for name in loaded.metadata.label_names if row["scores"][name] >= thresholds[name]
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


@pytest.mark.parametrize("method", ["full", "lora"])
def test_thresholds_of_classes(
    make_recipe: Callable[..., Any], method: str, tmp_path: Path
) -> None:
    """Found after training, saved, applied by every verb, and by plain Transformers with one line.

    Of the green texts five are rare and seven are not, so no probability passes one half.
    """
    rows = []
    for n in range(80):
        rare, green = n % 8 == 0, n % 16 == 0 or n % 10 == 1
        text = f"alpha {'green' if green else 'red'} {WORDS[n % 7]}"
        rows.append({"text": text, "label": "rare" if rare else "often"})
    data = str(_write(tmp_path / "rare.jsonl", rows))
    recipe = make_recipe(
        data={"path": data, "validation": data},
        method=method,
        evaluation={"thresholds": "best_f1"},
        training={"max_steps": 30, "eval_strategy": "no", "learning_rate": 5e-3},
    )
    run = hftune.train(recipe)
    loaded = hftune.load(run.path)
    thresholds = loaded.metadata.task_options["thresholds"]
    assert sum(thresholds.values()) == pytest.approx(1)
    assert thresholds["rare"] < 0.4
    assert run.metrics["eval_per_class"]["rare"]["threshold"] == thresholds["rare"]

    predicted = hftune.predict(loaded, data)
    shares = {row["text"]: row["scores"]["rare"] for row in predicted}
    for row in predicted:
        assert (row["prediction"] == "rare") == (shares[row["text"]] >= thresholds["rare"])
        assert row["score"] == row["scores"][row["prediction"]]
    assert any(row["prediction"] == "rare" for row in predicted)
    measured = hftune.evaluate(loaded, data)
    for name in ("f1_macro", "accuracy", "loss"):
        assert measured[f"eval_{name}"] == pytest.approx(run.metrics[f"eval_{name}"], abs=1e-5)

    auto: Any = AutoModelForSequenceClassification
    if method == "lora":
        auto = AutoPeftModelForSequenceClassification
    plain = auto.from_pretrained(str(run.model_path), num_labels=2).eval()
    batch = run.tokenizer(predicted["text"][:8], padding=True, return_tensors="pt")
    cuts = torch.tensor([thresholds[name] for name in loaded.metadata.label_names])
    with torch.no_grad():
        ids = (plain(**batch).logits - cuts.log()).argmax(-1).tolist()
    assert [loaded.metadata.label_names[i] for i in ids] == predicted["prediction"][:8]


@pytest.mark.parametrize(
    ("loss", "seen"),
    [
        ("cross_entropy", [0.75, 0.25]),
        ({"name": "cross_entropy", "class_weights": "balanced"}, [0.5, 0.5]),
        ({"name": "focal", "class_weights": {"rare": 2.0}}, [0.6, 0.4]),
    ],
)
def test_a_prior_knows_what_the_loss_did(
    make_recipe: Callable[..., Any], tmp_path: Path, loss: Any, seen: list[float]
) -> None:
    rows = [{"text": f"alpha {n}", "label": "rare" if n % 4 == 0 else "often"} for n in range(40)]
    path = str(_write(tmp_path / "rare.jsonl", rows))
    data = {"path": path, "validation": path}
    recipe = make_recipe(data=data, loss=loss, evaluation={"prior": {"rare": 0.01, "often": 0.99}})
    task: Any = prepare(recipe).objective.task
    assert list(task.seen_prior.values()) == pytest.approx(seen)


def test_an_estimated_prior_is_that_of_the_rows_at_hand(
    make_recipe: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Trained on 3 to 1 and judged on 1 to 3: evaluation and prediction find it, alike."""

    def rows(name: str, share: int) -> str:
        """Of four texts so many are common; one word in five tells the wrong class."""
        lines = [
            {"text": "beta" if (n % 4 < share) != (n % 5 == 0) else "gamma",
             "label": "often" if n % 4 < share else "rare"}
            for n in range(200)
        ]  # fmt: skip
        return str(_write(tmp_path / name, lines))

    train, turned = rows("train.jsonl", 3), rows("turned.jsonl", 1)
    recipe = make_recipe(
        data={"path": train, "validation": train},
        evaluation={"prior": "estimated"},
        training={"max_steps": 60, "learning_rate": 1e-2, "eval_strategy": "no"},
    )
    run = hftune.train(recipe)
    shares = {name: row["prior"] for name, row in run.metrics["eval_per_class"].items()}
    assert shares == pytest.approx({"often": 0.75, "rare": 0.25}, abs=0.05)
    measured = hftune.evaluate(run.path, turned)
    found = {name: row["prior"] for name, row in measured["eval_per_class"].items()}
    assert found == pytest.approx({"often": 0.25, "rare": 0.75}, abs=0.1)
    capsys.readouterr()
    predicted = hftune.predict(run.path, turned)
    assert "class shares estimated from 200 rows" in capsys.readouterr().err
    right = [r["prediction"] == r["label"] for r in predicted]
    assert np.mean(right) == pytest.approx(measured["eval_accuracy"])
    monkeypatch.setattr("hftune.runs.predict.CHUNK", 64)
    assert hftune.predict(run.path, turned)["score"] == pytest.approx(predicted["score"], abs=1e-6)


def test_bad_priors(make_recipe: Callable[..., Any], several: Path) -> None:
    for prior, message in (
        ({"red": 1.0}, "no share of blue, green"),
        ([0.5, 0.6, 0.1], "sum to 1"),
    ):
        with pytest.raises(HftuneError, match=message):
            hftune.check(make_recipe(evaluation={"prior": prior}))
    with pytest.raises(HftuneError, match="goes with one label a text"):
        hftune.check(make_recipe(data={"path": str(several)}, evaluation={"prior": "uniform"}))
    with pytest.raises(RecipeError, match="take one of the two"):
        make_recipe(evaluation={"prior": "uniform", "thresholds": "best_f1"})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"name": "cross_entropy", "class_weights": {"reed": 2.0}}, "unknown labels reed"),
        ({"name": "focal", "class_weights": [1.0, 2.0]}, "2 weights for 3 labels"),
        ({"name": "ordinal", "class_weights": {"red": -2.0}}, "needs the order|not be negative"),
        ({"name": "r_drop"}, "this model has none"),
        ({"name": "ordinal"}, "needs the order of the classes"),
        ({"name": "focal", "pos_weight": "balanced"}, "weighs the positives"),
    ],
)
def test_bad_losses(make_recipe: Callable[..., Any], loss: Any, message: str) -> None:
    with pytest.raises(HftuneError, match=message):
        hftune.check(make_recipe(loss=loss))


def test_a_loss_looks_at_a_model_of_ones_own(
    make_recipe: Callable[..., Any], tiny_encoder: Path, tmp_path: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=3)
    with pytest.raises(HftuneError, match="this model has none"):
        hftune.train(make_recipe(loss="r_drop"), model=model)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("loss", "method"),
    [
        ({"name": "r_drop", "alpha": 0.5}, {"name": "lora", "lora_dropout": 0.1}),
        ({"name": "supervised_contrastive"}, {"name": "lora"}),
        ({"name": "focal", "class_weights": "effective_number", "beta": 0.9}, "full"),
        ({"name": "cross_entropy", "logit_adjustment": 1.0}, "full"),
    ],
    ids=str,
)
def test_losses_learn(make_recipe: Callable[..., Any], loss: Any, method: Any) -> None:
    """The first colour of a text; the evaluation reports the plain loss."""
    training = {"max_steps": 40, "learning_rate": 1e-2, "eval_strategy": "no"}
    run = hftune.train(make_recipe(loss=loss, method=method, training=training))
    path = str(run.recipe.data.path)
    measured, predicted = hftune.evaluate(run, path), hftune.predict(run, path)
    assert measured["eval_accuracy"] > 0.8  # half of the rows are red
    nll = [-math.log(row["scores"][row["label"]]) for row in predicted]
    assert measured["eval_loss"] == pytest.approx(sum(nll) / len(nll), abs=1e-5)


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
