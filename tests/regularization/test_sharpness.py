# SPDX-License-Identifier: Apache-2.0
"""SAM by hand on a quadratic, and through the Trainer against a plain loop."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hftune import Recipe
from hftune.regularization.sharpness import SharpnessAware, climb
from hftune.training.build import build_trainer
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare

RATE, STEPS, ROWS = 0.1, 3, 8


def test_two_steps_on_a_quadratic() -> None:
    """``f = (3 w1² + 4 w2²) / 2`` at (1, 1): g = (3, 4), |g| = 5, so e = rho (0.6, 0.8)."""
    weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
    curve = torch.tensor([3.0, 4.0], dtype=torch.float64)
    by_hand = torch.ones(2, dtype=torch.float64)
    for step in range(2):
        (curve * weight.square()).sum().div(2).backward()
        kept = weight.detach().clone()
        climb([weight], 0.5, adaptive=False)
        if step == 0:
            torch.testing.assert_close(weight.detach(), torch.tensor([1.3, 1.4]).double())
        weight.grad = None
        (curve * weight.square()).sum().div(2).backward()
        with torch.no_grad():
            weight.copy_(kept - RATE * weight.grad)
        weight.grad = None
        gradient = curve * by_hand
        by_hand = by_hand - RATE * curve * (by_hand + 0.5 * gradient / gradient.norm())
    torch.testing.assert_close(weight.detach(), by_hand, atol=1e-12, rtol=0)


def test_adaptive_distance_does_not_see_the_scale() -> None:
    """``f(w1 w2)``: with ten times one and a tenth of the other, both move by the same shares."""
    shares = []
    for scale in (1.0, 10.0):
        pair = [nn.Parameter(torch.tensor([value], dtype=torch.float64))
                for value in (2000.0 * scale, 3000.0 / scale)]  # fmt: skip
        (pair[0] * pair[1]).sum().backward()
        before = [value.detach().clone() for value in pair]
        climb(pair, 0.5, adaptive=True)
        shares.append([float(now.detach() / old) for now, old in zip(pair, before, strict=True)])
    assert shares[0] == pytest.approx(shares[1], rel=1e-4)
    by_hand = 1 + 0.5 / 2**0.5  # w + rho w² g / |w g|, and both w g are equal; but for the 0.01
    assert shares[0][0] == pytest.approx(by_hand, rel=1e-4)


def recipe_of(
    make_recipe: Callable[..., Recipe], rows: int, groups: int, sam: Any, **more: Any
) -> Recipe:
    training = {
        "optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant", "warmup_steps": 0,
        "weight_decay": 0.0, "max_steps": STEPS, "eval_strategy": "no", "save_strategy": "no",
        "train_sampling_strategy": "sequential", "max_grad_norm": 0.0,
        "per_device_train_batch_size": rows, "gradient_accumulation_steps": groups, **more,
    }  # fmt: skip
    return make_recipe(training=training, regularization={"sam": sam})


def trained(recipe: Recipe) -> dict[str, Tensor]:
    plan = prepare(recipe)
    model = load_model(plan).model.double()
    build_trainer(plan, LoadedModel(model)).train()
    return {name: value.detach() for name, value in model.named_parameters()}


def by_hand(recipe: Recipe, rho: float, *, adaptive: bool, clip: float) -> dict[str, Tensor]:
    """The paper's algorithm on whole batches, in plain PyTorch."""
    plan = prepare(recipe)
    model: Any = load_model(plan).model.double().train()
    parameters = list(model.parameters())
    for step in range(STEPS):
        rows = [plan.splits.train.dataset[step * ROWS + i] for i in range(ROWS)]
        batch = plan.objective.task.collator(plan.pretrained.processor)(rows)
        labels = batch.pop("labels")

        def gradient(batch: Any = batch, labels: Tensor = labels) -> list[Tensor]:
            loss = F.cross_entropy(model(**batch).logits, labels)
            return list(torch.autograd.grad(loss, parameters))

        first = gradient()
        scales = [p.detach().abs() + 0.01 if adaptive else torch.ones_like(p) for p in parameters]
        norm = sum((t * g).square().sum() for t, g in zip(scales, first, strict=True)).sqrt()
        moves = [rho * t * t * g / norm for t, g in zip(scales, first, strict=True)]
        with torch.no_grad():
            for parameter, move in zip(parameters, moves, strict=True):
                parameter.add_(move)
            with torch.enable_grad():
                second = gradient()
            size = sum(g.square().sum() for g in second).sqrt()
            shrink = min(1.0, clip / float(size)) if clip else 1.0
            for parameter, move, g in zip(parameters, moves, second, strict=True):
                parameter.sub_(move).sub_(RATE * shrink * g)
    return {name: value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize(
    ("sam", "adaptive", "clip"), [(0.3, False, 0.0), ({"rho": 2.0, "adaptive": True}, True, 0.2)]
)
def test_a_run_is_the_papers_loop(
    sam: Any, adaptive: bool, clip: float, make_recipe: Callable[..., Recipe]
) -> None:
    """In float64, split three ways; the gradient that is stepped on is the one that is clipped."""
    rho = 2.0 if adaptive else 0.3
    recipe = recipe_of(make_recipe, ROWS, 1, sam, max_grad_norm=clip)
    expected = by_hand(recipe, rho, adaptive=adaptive, clip=clip)
    plain = by_hand(recipe, 1e-9, adaptive=False, clip=clip)
    apart = max(float((expected[name] - plain[name]).abs().max()) for name in plain)
    assert apart > 1e-4  # rho does matter here
    close = {"atol": 1e-6 if clip else 1e-10, "rtol": 0}  # torch adds 1e-6 to the norm it clips
    for rows, groups in ((8, 1), (4, 2), (2, 4)):
        split = trained(recipe_of(make_recipe, rows, groups, sam, max_grad_norm=clip))
        for name, value in split.items():
            torch.testing.assert_close(value, expected[name], **close)


def test_weights_come_back_when_the_second_pass_fails() -> None:
    layer = nn.Linear(3, 2)
    layer(torch.ones(1, 3)).sum().backward()
    before = layer.weight.detach().clone()
    callback = SharpnessAware(layer, 1.0)
    arguments: Any = type("Arguments", (), {"device": torch.device("cpu")})

    def fails() -> None:
        assert not torch.equal(layer.weight, before)
        raise KeyboardInterrupt

    with pytest.raises(RuntimeError, match="was not told how"):
        callback.on_pre_optimizer_step(arguments, None, None)
    callback.again = fails
    callback.on_step_begin(arguments, None, None)
    with pytest.raises(KeyboardInterrupt):
        callback.on_pre_optimizer_step(arguments, None, None)
    assert torch.equal(layer.weight, before)


def test_both_passes_draw_the_same() -> None:
    """The second one sees the dropout that the first one saw."""
    arguments: Any = type("Arguments", (), {"device": torch.device("cpu")})
    layer, seen = nn.Linear(3, 2), list[Tensor]()
    layer(torch.ones(1, 3)).sum().backward()
    callback = SharpnessAware(layer, 1.0)
    callback.again = lambda: seen.append(torch.rand(4))
    callback.on_step_begin(arguments, None, None)
    first = torch.rand(4)
    callback.on_pre_optimizer_step(arguments, None, None)
    assert torch.equal(seen[0], first)
