# SPDX-License-Identifier: Apache-2.0
"""Schedules and optimizers in a run: the rates that are logged, resumed, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import hftune
from hftune import Recipe, RecipeError
from hftune.optimization.optimizers import OPTIMIZERS
from hftune.optimization.option_rules import UNITS
from hftune.optimization.schedules import SCHEDULES
from hftune.training.build import build_trainer
from hftune.training.load_model import load_model
from hftune.training.plan.prepare import prepare
from hftune.training.plan.remarks import remarks

ROOT = Path(__file__).parents[3]
RATE = 1e-2
#: 54 training rows in batches of 8 are 7 optimizer steps an epoch.
EPOCH = 7


class StopAt(TrainerCallback):
    """Interrupts a run once a step is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def rates_of(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line["learning_rate"] for line in lines if "learning_rate" in line]


def stopped_and_whole(
    make_recipe: Callable[..., Recipe], tmp_path: Path, training: dict[str, Any]
) -> tuple[hftune.Run, hftune.Run]:
    """One run that goes through, and one that is stopped after the fifth step and resumed."""
    shared = {"learning_rate": RATE, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 8,
              "save_strategy": "steps", "save_steps": 5, "load_best_model_at_end": False,
              "metric_for_best_model": "loss", **training}  # fmt: skip
    runs = []
    for name in ("whole", "again"):
        recipe = make_recipe(training={**shared, "output_dir": str(tmp_path / name)})
        if name == "again":
            with pytest.raises(KeyboardInterrupt):
                hftune.train(recipe, callbacks=[StopAt(5)])
            runs.append(hftune.train(recipe, resume=True))
        else:
            runs.append(hftune.train(recipe))
    return runs[0], runs[1]


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"lr_scheduler_type": "step", "warmup_steps": 2, "optim": "muon",
          "lr_scheduler_kwargs": {"unit": "epoch", "step_size": 1, "gamma": 0.5}},
         [0, 0.5, 1, 1, 1, 1, 1, 0.5]),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "warmup_steps": 4, "optim": "nesterov",
          "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5, "threshold": 10.0,
                                  "threshold_mode": "abs"}},
         [0, 0.25, 0.5, 0.75, 1, 0.5, 0.25, 0.125]),
    ],
)  # fmt: skip
def test_rates_of_a_run_and_of_one_that_was_resumed(
    training: dict, expected: list[float], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """With a threshold that nothing passes each evaluation behind the warmup is a bad one, but the
    first, which sets the mark. Weights and rates are equal to the bit."""
    whole, again = stopped_and_whole(make_recipe, tmp_path, training)
    assert rates_of(whole.path) == pytest.approx([RATE * share for share in expected])
    assert rates_of(again.path) == rates_of(whole.path)
    for ours, theirs in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("method", ["freeze", "relora"])
def test_our_schedules_go_under_a_methods_own_factor(
    method: str, make_recipe: Callable[..., Recipe]
) -> None:
    own: dict[str, Any] = {
        "freeze": {"name": "freeze", "head_only_steps": 3, "head_only_rate": 10},
        "relora": {"name": "relora", "merge_every": 5, "rewarm_steps": 2, "r": 2},
    }[method]
    training = {"lr_scheduler_type": "multistep", "warmup_steps": 0, "max_steps": 12,
                "lr_scheduler_kwargs": {"unit": "run", "milestones": [0.75]},
                "eval_strategy": "no", "save_strategy": "no", "learning_rate": RATE}  # fmt: skip
    plan = prepare(make_recipe(method=own, training=training))
    trainer = build_trainer(plan, load_model(plan))
    trainer.train()
    rates = [line["learning_rate"] for line in trainer.state.log_history if "loss" in line]
    if method == "freeze":
        expected = [10.0] * 3 + [1.0] * 6 + [0.1] * 3
    else:
        expected = [1.0] * 5 + [0.0, 0.5, 1.0, 1.0] + [0.1] * 3
    assert [rate / RATE for rate in rates[:9]] == pytest.approx(expected[:9])
    assert rates[11] / RATE <= 0.1


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"warmup_steps": 3}, "training.warmup_steps: 3 optimizer steps are all of the 3"),
        ({"lr_scheduler_type": "multistep",
          "lr_scheduler_kwargs": {"unit": "epoch", "milestones": [1]}},
         "training.lr_scheduler_kwargs: milestones: 1 would come after 7 optimizer steps, and the"),
        ({"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 1,
          "lr_scheduler_kwargs": {"num_decay_steps": 5}}, "are 6 optimizer steps, and the run has"),
        ({"lr_scheduler_type": "polynomial", "learning_rate": 1e-8}, "must be smaller than"),
        ({"lr_scheduler_type": "greedy", "learning_rate": 1e-5}, "does not hold"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"mode": "min"}},
         "the wrong way round for this metric"),
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1}},
         "min_lr: 1 is not below the learning rate"),
        ({"metric_for_best_model": "accuracy", "greater_is_better": False},
         "training.greater_is_better: the higher the accuracy, the better"),
        ({"metric_for_best_model": "loss", "greater_is_better": True},
         "training.greater_is_better: the lower the loss, the better"),
    ],
)  # fmt: skip
def test_a_schedule_that_does_not_fit_the_run_shows_before_the_weights(
    training: dict, says: str, make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(RecipeError, match=says):
        prepare(make_recipe(training={"metric_for_best_model": "f1_macro", **training}))


def test_a_rate_that_dies_early_is_remarked_on(make_recipe: Callable[..., Recipe]) -> None:
    training = {"lr_scheduler_type": "exponential", "warmup_steps": 0, "max_steps": 400,
                "lr_scheduler_kwargs": {"unit": "step", "gamma": 0.95}}  # fmt: skip
    said = [r for r in remarks(prepare(make_recipe(training=training))) if "thousandth" in r]
    assert len(said) == 1
    assert "after 135 of 400 optimizer steps" in said[0]  # .95 ** 135 < .001


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"optim": "nadm"}, "did you mean nadam"),
        ({"optim": "sgd", "optim_args": "momentun=0.9"}, "sgd takes no momentun; did you mean mom"),
        ({"optim": "sgd", "optim_args": "momentum=much"}, "momentum: expected a number"),
        ({"optim": "sgd", "optim_args": "weight_decay=0.1"}, "said by training.weight_decay"),
        ({"optim": "adamw_torch", "optim_args": "foreach=true"}, "it takes amsgrad"),
        ({"optim": "lion_32bit", "optim_args": "x=1"}, "lion_32bit takes no x; it takes none"),
        ({"optim": "adam", "optim_args": "eps=1e-6"}, "said by training.adam_epsilon"),
        ({"optim": "adadelta", "adam_epsilon": 1e-6}, "say training.optim_args: eps="),
        ({"optim": "lion_32bit", "adam_epsilon": 1e-6}, "lion_32bit does not read it"),
        ({"optim": "asgd"}, "asgd needs t0"),
        ({"lr_scheduler_type": "cosine_warm_restart"}, "did you mean cosine_warm_restarts"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycle": 1}}, "num_cycles"),
        ({"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {"power": 1}},
         "takes no power; it takes none"),
        ({"lr_scheduler_type": "step", "lr_scheduler_kwargs": {"step_size": 3}}, UNITS),
        ({"lr_scheduler_type": "step",
          "lr_scheduler_kwargs": {"step_size": 3, "unit": "step", "gamma": 1.5}}, "gamma: must be"),
        ({"lr_scheduler_type": "multistep",
          "lr_scheduler_kwargs": {"unit": "step", "milestones": [0]}}, "milestones: item 1: must"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "needs one of min_lr and min_lr_rate"),
        ({"lr_scheduler_type": "cosine_with_min_lr",
          "lr_scheduler_kwargs": {"min_lr": 0.1, "min_lr_rate": 0.1}}, "needs one of min_lr"),
        ({"lr_scheduler_kwargs": "power=2"}, "expected a mapping"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 3}, "take constant_with_warmup"),
        ({"lr_scheduler_type": "greedy", "eval_strategy": "no"}, "the metric of the evaluations"),
        ({"optim": "schedule_free_sgd", "lr_scheduler_type": "cosine"}, "take constant"),
        ({"loraplus_lr_embedding": 1e-4}, "only with loraplus_lr_ratio"),
        ({"loraplus_lr_ratio": 8, "layer_decay": 0.9}, "leave out layer_decay"),
        ({"loraplus_lr_ratio": 8, "optim": "muon"}, "the rates of one optimizer"),
        ({"param_groups": [{"params": "a"}]}, "needs lr or weight_decay"),
        ({"param_groups": [{"params": "a", "lr": 1, "betas": 2}]}, r"param_groups\[0\].betas"),
        ({"layer_decay": 0.9, "optim": "lomo"}, "groups parameters by itself"),
        ({"learning_rate_scaling": {"rule": "cubic", "batch_size": 8}}, "'cubic' is not allowed"),
        ({"learning_rate_scaling": {"rule": "sqrt", "batch_size": 8},
          "auto_find_batch_size": True}, "the number of rows a step is not known"),
    ],
)  # fmt: skip
def test_what_a_recipe_is_refused_for(training: dict, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Recipe(task="text-classification", model="x", data="x", training=training)


def test_loraplus_needs_lora() -> None:
    with pytest.raises(RecipeError, match="it goes with qlora and lora"):
        Recipe(task="text-classification", model="x", data="x", method="full",
               training={"loraplus_lr_ratio": 8})  # fmt: skip


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        ("lbfgs", {"learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
                   "weight_decay": 0.0, "warmup_steps": 0}),
        ("schedule_free_adamw", {"lr_scheduler_type": "constant", "warmup_steps": 0.1}),
        ("adadelta", {"learning_rate": 1.0, "weight_decay": 0.01}),
        ("rprop", {"weight_decay": 0.0}),
        ("nadam", {"learning_rate": 5e-4}),
    ],
)  # fmt: skip
def test_defaults_follow_the_optimizer(optim: str, expected: dict) -> None:
    recipe = Recipe(task="text-classification", model="x", data="x", training={"optim": optim})
    assert {key: recipe.training[key] for key in expected} == expected


@pytest.mark.parametrize(("page", "names"), [("optimizers", OPTIMIZERS), ("schedules", SCHEDULES)])
def test_the_page_has_every_name_and_option_of_ours(page: str, names: dict) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for name, row in names.items():
        own = row.own if page == "schedules" else row.target is not None
        if page == "schedules" or own:
            assert f"`{name}`" in text, name
        if own:
            options = row.args if page == "optimizers" else row.kwargs
            assert all(f"`{option}`" in text for option in options), name
