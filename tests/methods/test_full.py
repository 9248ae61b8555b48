# SPDX-License-Identifier: Apache-2.0
"""Full fine-tuning trains every weight and keeps nothing of the base's gradients off."""

from collections.abc import Callable

import torch

from hftune import Recipe
from hftune.training.build import build_trainer
from hftune.training.load_model import LoadedModel, load_model, parameter_counts
from hftune.training.plan.prepare import prepare


def test_every_weight_moves(make_recipe: Callable[..., Recipe]) -> None:
    plan = prepare(make_recipe("text-generation", {"learning_rate": 1e-2, "max_steps": 2}))
    model = load_model(plan).model
    counts = parameter_counts(model)
    assert counts["trainable_parameters"] == counts["parameters"]
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    build_trainer(plan, LoadedModel(model)).train()
    still = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert still == []


def test_equal_recipes_start_and_end_equal(make_recipe: Callable[..., Recipe]) -> None:
    """The new head is drawn from the seed: same seed same bits, another seed others."""
    heads = []
    for seed in (1, 1, 2):
        plan = prepare(make_recipe(training={"seed": seed}))
        torch.rand(seed * 7)  # what ran before must not matter
        heads.append(load_model(plan).model.classifier.weight.detach().clone())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
