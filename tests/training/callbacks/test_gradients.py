# SPDX-License-Identifier: Apache-2.0
"""Clipping by norm and by value, and the norms in the log, against the gradients themselves."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from hftune import Recipe, RecipeError
from hftune.training.build import build_trainer
from hftune.training.callbacks.gradients import GradientLog
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare
from hftune.training.trainer import HftuneTrainer

PLAIN = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "warmup_steps": 0,
         "weight_decay": 0.0, "max_steps": 1, "eval_strategy": "no", "save_strategy": "no",
         "train_sampling_strategy": "sequential"}  # fmt: skip


def moved(recipe: Recipe) -> tuple[dict[str, torch.Tensor], HftuneTrainer]:
    """How far each weight moves in one SGD step, divided by the rate: the gradient as clipped."""
    plan = prepare(recipe)
    model = load_model(plan).model
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer = build_trainer(plan, LoadedModel(model))
    trainer.train()
    return {n: (start[n] - p.detach()) / 0.5 for n, p in model.named_parameters()}, trainer


def test_torch_clips_three_four_to_the_unit_circle() -> None:
    weight = nn.Parameter(torch.zeros(2))
    for gradient, clipped in (((3.0, 4.0), (0.6, 0.8)), ((0.3, 0.4), (0.3, 0.4))):
        weight.grad = torch.tensor(gradient)
        clip_grad_norm_([weight], 1.0)
        assert weight.grad.tolist() == pytest.approx(clipped, abs=1e-5)


@pytest.mark.parametrize(("rows", "groups"), [(8, 1), (2, 4)])
def test_the_logged_norm_is_that_before_clipping(
    rows: int, groups: int, make_recipe: Callable[..., Recipe]
) -> None:
    """Of the whole group of micro-batches, and of each layer, clipped or not."""
    split = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": groups}
    plain, _ = moved(make_recipe(training={**PLAIN, **split, "max_grad_norm": 0.0}))
    whole = torch.cat([g.flatten() for g in plain.values()]).norm().item()
    layers = {"layer_0": "layer.0.", "layer_1": "layer.1.", "embeddings": "embeddings.",
              "head": "classifier."}  # fmt: skip
    for limit in (0.0, whole / 10, whole * 10):
        asked = {**PLAIN, **split, "max_grad_norm": limit, "log_grad_norms": "layers"}
        clipped, trainer = moved(make_recipe(training=asked))
        line = trainer.state.log_history[0]
        assert line["grad_norm"] == pytest.approx(whole, rel=1e-4)
        for label, inside in layers.items():
            part = torch.cat([g.flatten() for n, g in plain.items() if inside in n]).norm().item()
            assert line[f"grad_norm/{label}"] == pytest.approx(part, rel=1e-3), (label, limit)
        parts = [v for k, v in line.items() if k.startswith("grad_norm/")]
        assert sum(v**2 for v in parts) ** 0.5 == pytest.approx(whole, rel=1e-4)
        after = torch.cat([g.flatten() for g in clipped.values()]).norm().item()
        assert after == pytest.approx(min(whole, limit or whole), rel=1e-3)


def test_clipping_by_value(make_recipe: Callable[..., Recipe]) -> None:
    plain, _ = moved(make_recipe(training={**PLAIN, "max_grad_norm": 0.0}))
    limit = max(g.abs().max().item() for g in plain.values()) / 3
    clipped, trainer = moved(
        make_recipe(training={**PLAIN, "max_grad_norm": 0.0, "max_grad_value": limit})
    )
    for name, gradient in plain.items():
        torch.testing.assert_close(
            clipped[name], gradient.clamp(-limit, limit), atol=1e-5, rtol=1e-4
        )
    assert max(g.abs().max().item() for g in clipped.values()) == pytest.approx(limit, rel=1e-4)
    assert trainer.state.log_history[0]["grad_norm"] > limit  # before clipping


@pytest.mark.parametrize(
    "given",
    [
        {"training": {"max_grad_value": 0.01}},
        {"regularization": {"gradient_noise": 1e-4}},
        {"training": {"max_grad_norm": 0.1}},
    ],
    ids=str,
)
def test_the_scale_of_fp16_is_off_before_anything_looks(
    given: dict[str, Any], make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a scaler of the CPU in place of a GPU's, also where nothing is clipped by norm.

    A scale of a power of two costs no bit, so the gradients are equal to the last of them.
    """
    training = {**PLAIN, "max_grad_norm": 0.0, "log_grad_norms": "layers",
                **given.get("training", {})}  # fmt: skip
    recipe = make_recipe(**{**given, "training": training})
    plain, alone = moved(recipe)
    build, scale = HftuneTrainer.create_accelerator_and_postprocess, 2.0**12

    def with_scaler(trainer: HftuneTrainer) -> None:
        build(trainer)
        accelerator = trainer.accelerator
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu", scale)
        monkeypatch.setattr(type(accelerator), "mixed_precision", "fp16")

    monkeypatch.setattr(HftuneTrainer, "create_accelerator_and_postprocess", with_scaler)
    monkeypatch.setattr(HftuneTrainer, "compute_loss_context_manager", lambda _: nullcontext())
    monkeypatch.setattr("accelerate.accelerator.get_mixed_precision_context_manager",
                        lambda *_: torch.autocast("cpu", enabled=False))  # fmt: skip
    scaled, trainer = moved(recipe)
    assert trainer.accelerator.scaler.get_scale() == scale
    assert trainer.optimizer.scaler is trainer.accelerator.scaler  # type: ignore[union-attr]
    assert all(torch.equal(value, scaled[name]) for name, value in plain.items())
    norms = [
        {key: value for key, value in one.state.log_history[0].items() if "grad_norm" in key}
        for one in (alone, trainer)
    ]
    assert norms[0] == norms[1]


def test_norms_of_groups(make_recipe: Callable[..., Recipe]) -> None:
    asked = {**PLAIN, "log_grad_norms": "groups", "max_grad_norm": 0.0,
             "param_groups": [{"params": ["classifier"], "lr": 0.5}]}  # fmt: skip
    gradients, trainer = moved(make_recipe(training=asked))
    line = trainer.state.log_history[0]
    names = {key.partition("/")[2] for key in line if key.startswith("grad_norm/")}
    assert names == {"all", "all.no_decay", "classifier", "classifier.no_decay"}
    head = gradients["classifier.weight"].norm().item()
    assert line["grad_norm/classifier"] == pytest.approx(head, rel=1e-3)
    assert not any(key.startswith("learning_rate/") for key in line)  # they are all the same


def test_vanishing_and_exploding_layers_show(tiny_encoder: Any) -> None:
    """A layer whose weights are scaled by a thousandth hands a thousandth down."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder)
    log = GradientLog(model, "layers")
    norms = []
    for scale in (1.0, 1e-3):
        with torch.no_grad():
            model.bert.pooler.dense.weight.mul_(scale)
        model.zero_grad()
        model(torch.tensor([[2, 5, 6, 3]])).logits.sum().backward()
        log.measure(0.0, 0.0, [])
        norms.append(log.figures())
    assert norms[1]["grad_norm/layer_0"] < norms[0]["grad_norm/layer_0"] / 300
    assert norms[1]["grad_norm/head"] > norms[0]["grad_norm/head"] / 300


@pytest.mark.parametrize("key", ["max_grad_value", "log_grad_norms"])
def test_steps_inside_the_backward_are_refused(
    key: str, make_recipe: Callable[..., Recipe]
) -> None:
    value = 0.5 if key == "max_grad_value" else "layers"
    with pytest.raises(RecipeError, match="where no gradient is left to look at"):
        make_recipe(training={"optim": "adalomo", key: value})
