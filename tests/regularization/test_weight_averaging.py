# SPDX-License-Identifier: Apache-2.0
"""The average against the snapshots it is made of: evaluated, saved, resumed with the same bits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

import hftune
from hftune import Recipe, RecipeError
from hftune.training.build import build_trainer
from hftune.training.load_model import load_model
from hftune.training.plan.prepare import prepare
from hftune.training.plan.remarks import remarks
from hftune.training.trainer import AVERAGE_FILE

STEPS = 6
QUIET = {"max_steps": STEPS, "eval_strategy": "no", "save_strategy": "no", "learning_rate": 1e-2}


class Snapshots(TrainerCallback):
    """Keeps the weights after each step."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model: nn.Module = kwargs["model"]
        self.taken.append({n: p.detach().clone() for n, p in model.named_parameters()})


def trained(recipe: Recipe) -> tuple[Any, Snapshots]:
    plan, snapshots = prepare(recipe), Snapshots()
    trainer = build_trainer(plan, load_model(plan), [snapshots])
    trainer.train()
    return trainer, snapshots


def assert_weights(model: nn.Module, expected: dict[str, Tensor], exact: float = 1e-6) -> None:
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], atol=exact, rtol=0)


def mean(snapshots: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([s[name] for s in snapshots]).mean(0) for name in snapshots[0]}


@pytest.mark.parametrize(
    ("options", "counted"),
    [
        ({"start": 1}, [0, 1, 2, 3, 4, 5]),
        ({"start": 0.5}, [2, 3, 4, 5]),
        ({"start": 2, "every": 2}, [1, 3, 5]),
        ({}, [4, 5]),  # from three quarters on, rounded up to step 5
    ],
)
def test_swa_is_the_mean_of_the_snapshots(
    options: dict, counted: list[int], make_recipe: Callable[..., Recipe]
) -> None:
    averaging = {"weight_averaging": {"name": "swa", **options}}
    trainer, snapshots = trained(make_recipe(training=QUIET, regularization=averaging))
    assert_weights(trainer.model, mean([snapshots.taken[step] for step in counted]))


def test_ema_is_the_recursion(make_recipe: Callable[..., Recipe]) -> None:
    averaging = {"weight_averaging": {"name": "ema", "decay": 0.6}}
    trainer, snapshots = trained(make_recipe(training=QUIET, regularization=averaging))
    expected = snapshots.taken[0]
    for snapshot in snapshots.taken[1:]:
        expected = {name: 0.6 * expected[name] + 0.4 * snapshot[name] for name in expected}
    assert_weights(trainer.model, expected)


def test_asgd_leaves_the_mean_in_the_model(make_recipe: Callable[..., Recipe]) -> None:
    """torch keeps it in the state alone. Its mean begins with the weights after step t0 + 2."""
    training = {**QUIET, "optim": "asgd", "optim_args": "t0=2,lambd=0"}
    trainer, snapshots = trained(make_recipe(training=training))
    assert_weights(trainer.model, mean(snapshots.taken[3:]))


def test_only_what_trains_is_averaged(make_recipe: Callable[..., Recipe]) -> None:
    averaging = {"weight_averaging": "ema"}
    recipe = make_recipe(training=QUIET, method="lora", regularization=averaging)
    plan = prepare(recipe)
    trainer = build_trainer(plan, load_model(plan))
    held = sum(p.numel() for p in trainer.averaging.average.parameters())
    assert held == sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("averaging", ["swa", "asgd"])
def test_evaluation_saving_and_resume(
    averaging: str, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Stopped after the fourth of six steps and resumed: the same bits. What is evaluated and saved
    is the average, also where the best checkpoint is taken."""
    training: dict[str, Any] = {"max_steps": STEPS, "eval_strategy": "steps", "eval_steps": 2,
                                "learning_rate": 1e-2, "save_total_limit": 9,
                                "metric_for_best_model": "loss"}  # fmt: skip
    sections: dict[str, Any] = {}
    if averaging == "asgd":
        training |= {"optim": "asgd", "optim_args": "t0=0,lambd=0"}
    else:
        sections["regularization"] = {"weight_averaging": {"name": "swa", "start": 1}}

    def recipe(folder: str) -> Recipe:
        where = {"output_dir": str(tmp_path / folder)}
        return make_recipe(training={**training, **where}, **sections)

    class Stop(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                raise KeyboardInterrupt

    snapshots = Snapshots()
    whole = hftune.train(recipe("whole"), callbacks=[snapshots])
    with pytest.raises(KeyboardInterrupt):
        hftune.train(recipe("again"), callbacks=[Stop()])
    again = hftune.train(recipe("again"), resume=True)
    for (name, ours), theirs in zip(
        whole.model.named_parameters(), again.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    lines = map(json.loads, (whole.path / "log.jsonl").read_text().splitlines())
    losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    best = min((step for step in (2, 4, 6)), key=lambda step: losses[step])
    first = 1 if averaging == "asgd" else 0
    assert_weights(whole.model, mean(snapshots.taken[first:best]))
    assert whole.metrics["eval_loss"] == pytest.approx(losses[best], abs=1e-6)
    assert (whole.checkpoints / f"checkpoint-{best}" / AVERAGE_FILE).is_file()
    plain = hftune.load(whole.path)
    for (name, ours), theirs in zip(
        whole.model.named_parameters(), plain.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"method": "relora"}, "which an average would undo"),
        ({"method": "prune"}, "which an average would undo"),
        ({"training": {"optim": "schedule_free_adamw"}}, "the optimizer averages the weights"),
        ({"method": "probe"}, "no Trainer runs for a probe"),
    ],
)
def test_what_does_not_go_with_it(sections: dict, says: str) -> None:
    whole = {"task": "text-classification", "model": "x", "data": "x", **sections}
    with pytest.raises(RecipeError, match=says):
        Recipe(**whole, regularization={"weight_averaging": "ema"})


def test_an_average_that_begins_too_late_or_remembers_too_long(
    make_recipe: Callable[..., Recipe],
) -> None:
    late = {"weight_averaging": {"name": "swa", "start": 7}}
    with pytest.raises(RecipeError, match="start: 7 optimizer steps, and the run has 6"):
        prepare(make_recipe(training=QUIET, regularization=late))
    plan = prepare(make_recipe(training=QUIET, regularization={"weight_averaging": "ema"}))
    said = [remark for remark in remarks(plan) if "weight_averaging" in remark]
    assert len(said) == 1
    assert "about 1000 steps, and 6 count: 99% of the average" in said[0]


def test_a_resolved_recipe_says_it_again(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe(
        training={**QUIET, "optim": "nadam", "lr_scheduler_type": "exponential",
                  "lr_scheduler_kwargs": {"unit": "epoch", "gamma": 0.9},
                  "param_groups": [{"params": ["classifier"], "lr": 0.1}],
                  "learning_rate_scaling": {"rule": "sqrt", "batch_size": 32}},
        regularization={"weight_averaging": {"name": "ema", "decay": 0.9}},
    )  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    again = Recipe.load(path)
    assert again.regularization == recipe.regularization
    assert {key: again.training[key] for key in recipe.training if key != "output_dir"} == {
        key: value for key, value in recipe.training.items() if key != "output_dir"
    }
