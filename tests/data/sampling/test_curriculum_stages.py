# SPDX-License-Identifier: Apache-2.0
"""Stages of a curriculum that end where the metric stands still, in real runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hftune
from hftune import Recipe, Run
from hftune.training.build import build_trainer
from hftune.training.load_model import load_model
from hftune.training.plan.prepare import prepare
from hftune.training.trainer import HftuneTrainer
from tests.stop_at import StopAt

Make = Callable[..., Recipe]
STAGED = {"name": "length", "pacing": "staged", "advance": "plateau", "stages": 3}


def recipe_of(make_recipe: Make, patience: int, **training: Any) -> Recipe:
    """48 rows: 6 steps an epoch, an evaluation behind each, and five epochs."""
    rows = {"path": make_recipe().data.path, "max_train_samples": 48}
    given = {"max_steps": -1, "num_train_epochs": 5, "metric_for_best_model": "loss", **training}
    return make_recipe(
        data={**rows, "curriculum": {**STAGED, "patience": patience}}, training=given
    )


def script(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let the evaluations find losses of one's choice, one an epoch."""
    metrics = HftuneTrainer._metrics

    def chosen(self: Any, prediction: Any) -> dict[str, float]:
        return {**metrics(self, prediction), "loss": losses[self.state.global_step // 6 - 1]}

    monkeypatch.setattr(HftuneTrainer, "_metrics", chosen)


@pytest.mark.parametrize(
    ("patience", "losses", "stages"),
    [
        (1, [3, 2, 2, 1, 1], [1, 1, 1, 2, 2]),
        (2, [3, 3, 3, 2, 2], [1, 1, 1, 2, 2]),
        (1, [3, 3, 3, 3, 3], [1, 1, 2, 3, 3]),
    ],
)
def test_an_epoch_has_the_stages_that_are_over_and_one_more(
    patience: int,
    losses: list[float],
    stages: list[int],
    make_recipe: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script(monkeypatch, losses)
    plan = prepare(recipe_of(make_recipe, patience))
    row_sampler: Any = plan.splits.row_sampler
    deal, seen = row_sampler.rows, {}

    def rows(generator: Any, place: Any) -> list[int]:
        seen[place.epoch] = deal(generator, place)
        return list(seen[place.epoch])

    row_sampler.rows = rows
    build_trainer(plan, load_model(plan)).train()
    thirds = [set(row_sampler.order[:number]) for number in (16, 32, 48)]
    assert [thirds.index(set(seen[epoch])) + 1 for epoch in range(5)] == stages
    said = capsys.readouterr()
    assert ("stage 2 of 3 from the next epoch on" in said.out + said.err) == (max(stages) > 1)
    never = "its hardest rows never trained" in said.out + said.err
    assert never == (max(stages) < 3)


def test_a_resumed_run_is_in_the_same_stage(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(monkeypatch, [3, 3, 3, 2, 2])
    steps = {"save_strategy": "steps", "save_steps": 5, "load_best_model_at_end": False}
    whole = hftune.train(recipe_of(make_recipe, 1, **steps))
    steps["output_dir"] = str(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        hftune.train(recipe_of(make_recipe, 1, **steps), callbacks=[StopAt(16)])
    resumed = hftune.train(Run(tmp_path / "stopped").recipe, resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
