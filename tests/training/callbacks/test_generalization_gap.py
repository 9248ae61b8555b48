# SPDX-License-Identifier: Apache-2.0
"""How far the validation loss is above that of training rows, both judged alike."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import hftune
from hftune import Recipe, RecipeError

Make = Callable[..., Recipe]


def rows_of(number: int, start: int = 0) -> Dataset:
    """Return rows with two labels, one three times as frequent as the other."""
    numbers = range(start, start + number)
    return Dataset.from_dict({
        "text": [f"row {n} says {'yes ' * (n % 5)}" for n in numbers],
        "label": ["rare" if n % 4 == 0 else "common" for n in numbers],
    })  # fmt: skip


def plain_loss(model_path: Path, rows: Dataset) -> float:
    """Return the cross-entropy of rows, one by one, as Transformers alone loads the model."""
    model = AutoModelForSequenceClassification.from_pretrained(model_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    losses = []
    with torch.no_grad():
        for row in rows:
            logits = model(**tokenizer(row["text"], return_tensors="pt")).logits
            label = torch.tensor([model.config.label2id[row["label"]]])
            losses.append(F.cross_entropy(logits, label))
    return torch.stack(losses).mean().item()


def test_both_losses_are_plain_and_of_the_same_weights(make_recipe: Make) -> None:
    """Neither weights, smoothing, penalty nor dropout is in them, though training has all four."""
    training, validation = rows_of(24), rows_of(30, start=100)
    recipe = make_recipe(
        evaluation={"gap": True},
        loss={"name": "cross_entropy", "class_weights": "balanced"},
        regularization={"l2": 0.1, "dropout": 0.5},
        training={"label_smoothing_factor": 0.2, "learning_rate": 1e-2, "max_steps": 6},
    )
    run = hftune.train(recipe, train_dataset=training, eval_dataset=validation)
    seen, unseen = (plain_loss(run.model_path, rows) for rows in (training, validation))
    assert run.metrics["eval_loss"] == pytest.approx(unseen, abs=1e-5)
    assert run.metrics["eval_train_loss"] == pytest.approx(seen, abs=1e-5)
    assert run.metrics["eval_gap"] == pytest.approx(unseen - seen, abs=1e-5)


@pytest.mark.draws
def test_as_many_rows_are_drawn_as_validate_and_the_same_each_time(
    make_recipe: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a rate of next to nothing all evaluations say the same, and the log has them."""
    recipe = make_recipe(
        evaluation={"gap": True},
        training={"learning_rate": 1e-12, "max_steps": 6, "eval_strategy": "steps",
                  "eval_steps": 2, "save_strategy": "no"},
    )  # fmt: skip
    training, validation = rows_of(40), rows_of(8, start=100)
    run = hftune.train(recipe, train_dataset=training, eval_dataset=validation)
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    told = [line for line in lines if "eval_gap" in line]
    assert [line["step"] for line in told] == [2, 4, 6]
    assert len({round(line["eval_train_loss"], 6) for line in told}) == 1
    assert told[0]["eval_train_loss"] != pytest.approx(plain_loss(run.model_path, training))
    assert "training rows at step 2: loss" in capsys.readouterr().err
    assert "judged like validation" in (run.path / "plots" / "loss.svg").read_text()


def test_what_the_model_writes_is_shown_of_validation_rows(
    make_recipe: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """The samples of a run that generates are not those of training rows."""
    rows = {"prompt": [f"say {n}" for n in range(8)], "completion": ["yes"] * 8}
    unseen = {"prompt": ["answer"], "completion": ["no"]}
    recipe = make_recipe(
        "text-generation",
        evaluation={"gap": True, "generation": {"max_new_tokens": 2}},
        training={"max_steps": 1, "eval_strategy": "no"},
    )
    run = hftune.train(
        recipe, train_dataset=Dataset.from_dict(rows), eval_dataset=Dataset.from_dict(unseen)
    )
    shown = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert len(shown) == 1
    assert "answer" in json.dumps(shown)
    assert run.metrics["eval_gap"] == run.metrics["eval_loss"] - run.metrics["eval_train_loss"]


def test_there_must_be_something_to_compare_with(make_recipe: Make) -> None:
    """Without validation rows the key is refused."""
    with pytest.raises(RecipeError, match="no validation part to compare with"):
        make_recipe(evaluation={"gap": True}, data={"path": "demo:docstrings",
                                                    "validation_size": 0})  # fmt: skip
