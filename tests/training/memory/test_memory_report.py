# SPDX-License-Identifier: Apache-2.0
"""What a run says of itself before the weights: tokens by hand, and what is done by need."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import hftune
from hftune import Recipe
from hftune.training.memory import memory_report
from hftune.training.memory.memory_report import largest_batch, plan_memory, print_memory_report
from hftune.training.plan.plan import Plan
from hftune.training.plan.prepare import prepare
from tests.training.sampling.budgeted import budgeted

MIB = 2**20


@pytest.fixture
def plan(make_recipe: Callable[..., Recipe]) -> Plan:
    return prepare(make_recipe(training={"per_device_train_batch_size": 4}))


def test_a_padded_row_is_as_long_as_the_longest(make_recipe: Callable[..., Recipe]) -> None:
    plan = prepare(make_recipe(training={"per_device_train_batch_size": 4, "torch_compile": True}))
    assert largest_batch(plan) == (4, max(plan.splits.train.sizes))


def test_packed_rows_share_what_the_largest_batch_holds(plan: Plan) -> None:
    lengths = np.array(plan.splits.train.sizes)
    order = np.random.default_rng(plan.settings.arguments.seed).permutation(len(lengths))
    batches = [lengths[order[start : start + 4]].sum() for start in range(0, len(order) - 3, 4)]
    rows, length = largest_batch(plan)
    assert (rows, length) == (4, -(-max(batches) // 4))
    assert length <= max(lengths)


def test_batches_of_like_lengths_have_the_longest_rows(make_recipe: Callable[..., Recipe]) -> None:
    given = {"per_device_train_batch_size": 4, "train_sampling_strategy": "group_by_length"}
    plan = prepare(make_recipe(training=given))
    longest = sorted(plan.splits.train.sizes)[-4:]
    assert largest_batch(plan) == (4, -(-sum(longest) // 4))


def test_a_budget_is_what_the_largest_batch_holds(make_recipe: Callable[..., Recipe]) -> None:
    plan = prepare(budgeted(make_recipe, budget=100))
    rows, length = largest_batch(plan)
    assert length == max(plan.splits.train.sizes)
    assert rows * length <= 100 < (rows + 1) * length


def test_memory_is_said_before_the_run(
    make_recipe: Callable[..., Recipe], capfd: pytest.CaptureFixture[str]
) -> None:
    hftune.train(make_recipe(training={"max_steps": 1}))
    said = capfd.readouterr().err
    memory, folder = said.index("memory for training, about"), said.index("run folder")
    assert said.index("computes on: cpu, float32; optimizer: adamw_torch_fused") < memory < folder


def test_too_little_memory_is_warned_of_with_what_helps(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory_report, "device_memory", lambda plan: MIB // 4)
    print_memory_report(plan)
    said = capfd.readouterr().err
    assert "of 0" in said
    assert "the run may not fit; less is taken by" in said
    assert "training.activation_checkpointing: true" in said
    assert "per_device_train_batch_size: 2 with gradient_accumulation_steps: 2" in said
    assert not plan.settings.arguments.activation_checkpointing, "on a CPU nothing is switched on"


@pytest.fixture
def on_a_gpu(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The same plan, as it would be with a GPU; no tensor goes there."""
    monkeypatch.setattr(
        type(plan.settings.arguments), "device", property(lambda _: torch.device("cuda"))
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    return plan


def test_a_gpu_recomputes_where_that_is_needed_and_enough(
    on_a_gpu: Plan, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = plan_memory(on_a_gpu)
    assert whole is not None
    monkeypatch.setattr(memory_report, "device_memory", lambda plan: whole.total)
    assert print_memory_report(on_a_gpu) is on_a_gpu
    assert "recomputed" not in capfd.readouterr().err
    monkeypatch.setattr(memory_report, "device_memory", lambda plan: whole.total - 1)
    smaller = print_memory_report(on_a_gpu)
    said = capfd.readouterr().err
    assert "activations are recomputed" in said
    assert "may not fit" not in said
    assert smaller.settings.arguments.activation_checkpointing
    assert smaller.context().gradient_checkpointing
    assert plan_memory(smaller).total < whole.total  # type: ignore[union-attr]
    assert not on_a_gpu.settings.arguments.activation_checkpointing, "nobody writes to a plan"


@pytest.mark.parametrize(
    ("training", "available"),
    [({"activation_checkpointing": False}, -1), ({}, None)],
    ids=["said otherwise", "not enough"],
)
def test_a_gpu_does_not_recompute(
    training: dict[str, Any],
    available: int | None,
    on_a_gpu: Plan,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    recipe = on_a_gpu.settings.recipe
    recipe = recipe.replaced(training={**recipe.training, **training})
    plan = replace(on_a_gpu, settings=replace(on_a_gpu.settings, recipe=recipe))
    whole = plan_memory(plan)
    assert whole is not None
    least = 1000 if available is None else whole.total + available
    monkeypatch.setattr(memory_report, "device_memory", lambda plan: least)
    assert not print_memory_report(plan).settings.arguments.activation_checkpointing
    assert "the run may not fit" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("sections", "runs"),
    [
        ({}, None),
        ({"regularization": {"sam": 0.1}}, 2),
        ({"regularization": {"adversarial": 0.1}}, 2),
        ({"loss": "r_drop", "model": {"config": {"hidden_dropout_prob": 0.1}}}, 2),
    ],
    ids=["once", "sam", "adversarial", "r_drop"],
)
def test_a_step_that_runs_the_model_again_is_said(
    sections: dict[str, Any],
    runs: int | None,
    make_recipe: Callable[..., Recipe],
    capfd: pytest.CaptureFixture[str],
) -> None:
    recipe = make_recipe()
    model = {"path": recipe.model.path, **sections.pop("model", {})}
    print_memory_report(prepare(make_recipe(model=model, **sections)))
    said = capfd.readouterr().err
    assert (f"each step runs a model over the batch {runs} times" in said) == (runs is not None)


def test_gradients_stand_where_they_are(
    make_recipe: Callable[..., Recipe], capfd: pytest.CaptureFixture[str]
) -> None:
    """After the activations that they replace; with several micro-batches they add up."""
    print_memory_report(prepare(make_recipe()))
    assert ", then gradients " in capfd.readouterr().err
    print_memory_report(prepare(make_recipe(training={"gradient_accumulation_steps": 2})))
    said = capfd.readouterr().err
    assert "gradients " in said
    assert "then gradients" not in said
