# SPDX-License-Identifier: Apache-2.0
"""A sweep over a recipe: it trains, it stops, and nothing of it stays."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hftune
from hftune import HftuneError, Recipe, RunError
from hftune.optimization.lr_sweep_reading import rate_at
from hftune.optimization.optimizers import DEFAULT
from hftune.training.load_model import load_model
from hftune.training.plan.prepare import prepare


@pytest.mark.draws
def test_nothing_is_left_behind(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder but the picture; generators and recipe as before; two sweeps are equal."""
    monkeypatch.chdir(tmp_path)
    recipe = make_recipe(
        training={"eval_strategy": "steps", "eval_steps": 1, "lr_scheduler_type": "step",
                  "lr_scheduler_kwargs": {"unit": "run", "step_size": 0.5}},
        regularization={"weight_averaging": "swa"},
    )  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    text, python, numpy = recipe.to_yaml(), random.getstate(), np.random.get_state()[1].copy()
    state = torch.get_rng_state()
    sweeps = [
        hftune.lr_find(recipe, start=1e-5, end=10.0, steps=30, plot=tmp_path / "lr.png")
        for _ in range(2)
    ]
    assert sweeps[0] == sweeps[1]
    assert random.getstate() == python
    assert (np.random.get_state()[1] == numpy).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert recipe.to_yaml() == text
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "lr.png"])
    assert (tmp_path / "lr.png").stat().st_size > 5000
    found = sweeps[0]
    assert found.rates == tuple(rate_at(i, 1e-5, 10.0, 30) for i in range(len(found.rates)))
    assert found.suggestion is None or 1e-5 < found.suggestion <= found.lowest


def test_a_model_of_ones_own_is_put_back(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe()
    model = load_model(prepare(recipe)).model
    start = {name: value.clone() for name, value in model.state_dict().items()}
    hftune.lr_find(recipe, start=1e-4, end=1.0, steps=12, model=model)
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_losses_are_those_of_a_plain_loop(make_recipe: Callable[..., Recipe]) -> None:
    """The loss that belongs to a rate is that of the batch after the step with it."""
    training = {"optim": "sgd", "max_grad_norm": 0.0, "weight_decay": 0.0,
                "train_sampling_strategy": "sequential"}  # fmt: skip
    rows = {"path": make_recipe().data.path, "validation_size": 0, "max_train_samples": 56}
    recipe = make_recipe(training=training, data=rows)
    found = hftune.lr_find(recipe, start=1e-3, end=0.1, steps=10)
    plan = prepare(recipe)
    model, expected = load_model(plan).model.train(), []
    collate = plan.objective.task.collator(plan.pretrained.processor)
    for step in range(11):
        rows = [plan.splits.train.dataset[(8 * step + i) % 56] for i in range(8)]
        batch = collate(rows)
        loss = torch.nn.functional.cross_entropy(
            model(**{k: v for k, v in batch.items() if k != "labels"}).logits, batch["labels"]
        )
        expected.append(loss.item())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(rate_at(step, 1e-3, 0.1, 10) * parameter.grad)
    assert found.losses == pytest.approx(expected[1:], rel=1e-4)


def test_it_stops_where_the_loss_diverges(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(training={"optim": "sgd", "max_grad_norm": 0.0})
    found = hftune.lr_find(recipe, start=1e-2, end=1e6, steps=30)
    assert found.diverged is not None
    assert len(found.rates) < 30
    with pytest.raises(RunError, match="the loss diverged after"):
        hftune.lr_find(recipe, start=1e5, end=1e9, steps=30)


@pytest.mark.parametrize(
    ("options", "training", "says"),
    [
        ({"start": 1.0, "end": 0.1}, {}, "does not rise"),
        ({"start": 0.0}, {}, "does not rise"),
        ({"steps": 3}, {}, "too few to see anything"),
        ({"plot": "curve.txt"}, {}, "no picture"),
        ({"plot": "absent/curve.png"}, {}, "is no folder"),
        ({}, {"optim": "rprop"}, "steps of its own length"),
        ({}, {"optim": "lbfgs"}, "steps of its own length"),
        ({}, {"optim": "adalomo"}, "steps in the backward"),
    ],
)
def test_bad_input(
    options: dict[str, Any], training: dict[str, Any], says: str,
    make_recipe: Callable[..., Recipe],
) -> None:  # fmt: skip
    recipe = make_recipe(training={"optim": DEFAULT, **training})
    with pytest.raises(HftuneError, match=says):
        hftune.lr_find(recipe, **options)


def test_groups_keep_their_ratio(make_recipe: Callable[..., Recipe]) -> None:
    """A group of one's own with rate 0 stands still whatever the sweep does."""
    from hftune.training.lr_sweep import Sweep

    recipe = make_recipe(
        training={"learning_rate": 1e-3, "param_groups": [{"params": ["classifier"], "lr": 1e-2}]}
    )
    plan = prepare(recipe)
    rising = Sweep(**vars(plan.settings.optimization), start=1e-6, end=1.0, steps=10)
    optimizer = torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in (1e-3, 1e-2)]
    )
    rising.make_schedule(optimizer, replace(plan.settings.arguments), plan.training_steps)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-6, 1e-5])
