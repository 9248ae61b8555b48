# SPDX-License-Identifier: Apache-2.0
"""When a run ends early, on scripted metrics; the weights it keeps; a resume that counts on."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hftune
from hftune import Recipe, RecipeError, Run
from hftune.training.trainer import HftuneTrainer
from tests.stop_at import StopAt

Make = Callable[..., Recipe]


def script(monkeypatch: pytest.MonkeyPatch, losses: Sequence[float]) -> None:
    """Let the evaluation after the n-th epoch say the n-th loss, whatever the model."""
    true = HftuneTrainer._metrics

    def said(trainer: HftuneTrainer, prediction: Any) -> dict[str, float]:
        metrics = true(trainer, prediction)
        return {**metrics, "loss": losses[round(trainer.state.epoch or 0) - 1]}

    monkeypatch.setattr(HftuneTrainer, "_metrics", said)


def recipe_of(make_recipe: Make, **training: Any) -> Recipe:
    """Build a recipe of eight epochs of two steps."""
    given = {"max_steps": 16, "per_device_train_batch_size": 32, "learning_rate": 1e-2,
             "metric_for_best_model": "loss", "early_stopping_patience": 3}  # fmt: skip
    return make_recipe(training={**given, **training})


@pytest.mark.parametrize(
    ("losses", "options", "epochs", "best"),
    [
        ([3, 2, 1, 1.1, 1.2, 1.3, 0.5, 0.4], {}, 6, 3),
        ([3, 2, 1, 1.1, 1.2, 0.9, 1.3, 1.4], {}, 8, 6),
        ([3, 2, 1, 1.1, 1.2, 1.3, 0.5, 0.4], {"early_stopping_patience": 1}, 4, 3),
        ([3, 2, 1.9, 1.85, 1.8, 1, 1, 1], {"early_stopping_threshold": 0.5}, 5, 5),
    ],
    ids=["stops", "a gain in between", "at once", "gains too small"],
)
def test_it_stops_after_so_many_evaluations_without_a_gain(
    losses: list[float],
    options: dict[str, Any],
    epochs: int,
    best: int,
    make_recipe: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The weights kept are those of the best evaluation, not the last."""
    script(monkeypatch, losses)
    run = hftune.train(recipe_of(make_recipe, save_total_limit=20, **options))
    assert run.metrics["train_steps"] == 2 * epochs
    assert run.metrics["planned_steps"] == 16
    assert run.metrics["best_step"] == 2 * best
    at_best = load_file(run.checkpoints / f"checkpoint-{2 * best}" / "model.safetensors")
    for name, value in load_file(run.model_path / "model.safetensors").items():
        assert torch.equal(value, at_best[name]), name
    said = capsys.readouterr().err
    assert (f"stopped early, after {2 * epochs} of 16 optimizer steps" in said) == (epochs < 8)


def test_a_resumed_run_counts_on(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Interrupted while it counts, and after it stopped but before its model was there."""
    script(monkeypatch, [3, 2, 2.5, 2.4, 2.3, 1, 1, 1])
    whole = hftune.train(recipe_of(make_recipe, save_total_limit=20))
    assert whole.metrics["train_steps"] == 10
    weights = load_file(whole.model_path / "model.safetensors")
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        hftune.train(
            recipe_of(make_recipe, save_total_limit=20, output_dir=str(stopped)),
            callbacks=[StopAt(9)],
        )
    resumed = hftune.train(Run(stopped).recipe, resume=True)
    for run in (resumed, _without_its_model(resumed)):
        assert run.metrics["train_steps"] == 10
        found = load_file(run.model_path / "model.safetensors")
        assert all(torch.equal(value, found[name]) for name, value in weights.items())


@pytest.mark.parametrize("steps", [4, 5])
def test_a_run_that_was_over_does_not_train_again(steps: int, make_recipe: Make) -> None:
    """At the end of an epoch of two steps, and within one."""
    run = hftune.train(
        make_recipe(
            training={"max_steps": steps, "per_device_train_batch_size": 32,
                      "eval_strategy": "no", "save_strategy": "steps", "save_steps": 1}
        )
    )  # fmt: skip
    weights = load_file(run.model_path / "model.safetensors")
    again = _without_its_model(run)
    assert again.metrics["train_steps"] == steps
    found = load_file(again.model_path / "model.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in weights.items())


def _without_its_model(run: Run) -> Run:
    """Resume a run as if it had been interrupted before its model was saved."""
    shutil.rmtree(run.model_path)
    again = hftune.train(run.recipe, resume=True)
    lines = (run.path / "log.jsonl").read_text().splitlines()
    steps = [json.loads(line).get("step", 0) for line in lines]
    assert max(steps) == run.metrics["train_steps"]
    return again


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"training": {"early_stopping_patience": 0}}, "must be at least 1"),
        ({"training": {"early_stopping": 3}}, "did you mean early_stopping_patience"),
        ({"training": {"early_stopping_threshold": 0.1}}, "goes with early_stopping_patience"),
        ({"training": {"early_stopping_patience": 2, "eval_strategy": "no"}}, "counts evaluations"),
        (
            {
                "training": {"early_stopping_patience": 2},
                "data": {"path": "a", "validation_size": 0},
            },
            "counts evaluations",
        ),
        (
            {"training": {"early_stopping_patience": 2, "load_best_model_at_end": False}},
            "not the best",
        ),
        ({"training": {"early_stopping_patience": 2, "save_strategy": "no"}}, "not the best"),
        (
            {"training": {"early_stopping_patience": 2}, "method": "adalora"},
            "decide late in the run",
        ),
        (
            {"training": {"early_stopping_patience": 2}, "method": "probe"},
            "no Trainer runs for a probe",
        ),
    ],
    ids=str,
)
def test_recipes_that_say_what_cannot_be(sections: dict[str, Any], match: str) -> None:
    given = {"task": "text-classification", "model": "m", "data": "a.csv", "method": "full"}
    with pytest.raises(RecipeError, match=match):
        Recipe(**{**given, **sections})


@pytest.mark.parametrize(
    ("training", "evaluations"),
    [
        ({}, "8 evaluations"),
        ({"eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 5},
         "3 evaluations"),
        ({"eval_strategy": "steps", "eval_steps": 0.5, "save_strategy": "steps",
          "save_steps": 0.5}, "2 evaluations"),
    ],
)  # fmt: skip
def test_a_patience_that_the_run_does_not_reach_is_told(
    training: dict[str, Any],
    evaluations: str,
    make_recipe: Make,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hftune.check(recipe_of(make_recipe, **{**training, "early_stopping_patience": 8}))
    assert f"patience: 8, and the run has {evaluations}, so" in " ".join(
        capsys.readouterr().err.split()
    )
    hftune.check(recipe_of(make_recipe, **{**training, "early_stopping_patience": 1}))
    assert "cannot end early" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "epochs", "says"),
    [
        ({"data": {"curriculum": {"name": "length", "pacing": "staged", "advance": "plateau"}}},
         5, "3 stages with patience 2 last 5 evaluations before the last one begins"),
        ({"training": {"lr_scheduler_type": "reduce_lr_on_plateau",
                       "lr_scheduler_kwargs": {"patience": 4}}},
         5, "patience 4, and the run has 5 evaluations, so the rate cannot fall in time"),
        ({"training": {"lr_scheduler_type": "reduce_lr_on_plateau"}}, 11, "patience 10, and"),
    ],
)  # fmt: skip
def test_what_waits_for_more_evaluations_than_there_are_is_told(
    sections: dict[str, Any],
    epochs: int,
    says: str,
    make_recipe: Make,
    labelled_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One epoch more is enough."""
    data = {"path": str(labelled_file), **sections.get("data", {})}
    for more, told in ((0, True), (1, False)):
        training = {"max_steps": -1, "num_train_epochs": epochs + more,
                    "per_device_train_batch_size": 32, **sections.get("training", {})}  # fmt: skip
        hftune.check(make_recipe(data=data, training=training))
        assert (says in " ".join(capsys.readouterr().err.split())) == told
