# SPDX-License-Identifier: Apache-2.0
"""Penalties by hand, and their gradients in every split of a step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import hftune
from hftune import Recipe, RecipeError
from hftune.regularization.penalties import WeightPenalty
from hftune.training.build import build_trainer
from hftune.training.load_model import load_model
from hftune.training.plan.prepare import prepare

SPLITS = [(8,), (4, 4), (2, 2, 2, 2), (1,) * 8]


def small() -> nn.Module:
    """A trunk of [[1, -2], [3, 0]] with a norm, and a head of [[-1, 1]] with a bias of 5."""
    model = nn.ModuleDict(
        {"trunk": nn.Linear(2, 2, bias=False), "norm": nn.LayerNorm(2), "head": nn.Linear(2, 1)}
    )
    with torch.no_grad():
        model["trunk"].weight.copy_(torch.tensor([[1.0, -2], [3, 0]]))
        model["head"].weight.copy_(torch.tensor([[-1.0, 1]]))
        model["head"].bias.fill_(5)
    return model


def test_values_by_hand() -> None:
    """Matrices: |w| 1 + 2 + 3 + 1 + 1 = 8, w² 1 + 4 + 9 + 1 + 1 = 16."""
    model = small()
    assert float(WeightPenalty(model, l1=0.5)().detach()) == 4
    assert float(WeightPenalty(model, l2=0.25)().detach()) == 4
    assert float(WeightPenalty(model, l1=0.5, l2=0.25)().detach()) == 8  # elastic net
    model["trunk"].requires_grad_(False)
    assert float(WeightPenalty(model, l1=0.5)().detach()) == 1


def test_distance_to_the_start() -> None:
    """Norms have a start, too; the new head has none."""
    model = small()
    penalty = WeightPenalty(model, l2_sp=0.5, new_modules=["head"])
    assert float(penalty().detach()) == 0
    with torch.no_grad():
        model["trunk"].weight[0, 0] += 2
        model["norm"].bias[1] += 4
        model["head"].weight += 100
    assert float(penalty().detach()) == 0.25 * (4 + 16)
    penalty().backward()
    assert model["trunk"].weight.grad[0, 0] == 0.5 * 2
    assert model["head"].weight.grad is None


def test_gradients_are_equal_in_every_split(make_recipe: Callable[..., Recipe]) -> None:
    """In float64 to 1e-10, and they are the plain ones and the penalties' own together."""
    factors = {"l1": 1e-3, "l2": 1e-2, "l2_sp": 0.1}
    plan = prepare(make_recipe(regularization=factors))
    loaded = load_model(plan)
    model = loaded.model.double()
    trainer: Any = build_trainer(plan, loaded)
    head = ("classifier.",)
    start = {n: p.detach().clone() for n, p in model.named_parameters() if not n.startswith(head)}
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    rows = [plan.splits.train.dataset[3 * index] for index in range(8)]

    def gradients(sizes: tuple[int, ...]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        trainer.current_gradient_accumulation_steps = len(sizes)
        ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
        parts = [rows[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        batches = iter([trainer.data_collator(part) for part in parts])
        group, count = trainer.get_batch_samples(batches, len(sizes), torch.device("cpu"))
        for batch in group:
            trainer.training_step(model, batch, count)
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    whole, *others = (gradients(sizes) for sizes in SPLITS)
    for other in others:
        for name, gradient in whole.items():
            torch.testing.assert_close(other[name], gradient, atol=1e-10, rtol=0)
    trainer.penalty = None
    plain = gradients((4, 4))
    for name, parameter in model.named_parameters():
        added = torch.zeros_like(parameter)
        if parameter.ndim >= 2:
            added = 1e-3 * parameter.detach().sign() + 2e-2 * parameter.detach()
        if name in start:
            added = added + 0.1 * (parameter.detach() - start[name])
        before = plain.get(name, torch.zeros_like(parameter))
        after = whole.get(name, torch.zeros_like(parameter))
        torch.testing.assert_close(after, before + added, atol=1e-10, rtol=0)


def test_a_strong_pull_holds_the_pretrained_weights(
    make_recipe: Callable[..., Recipe], tmp_path: Any
) -> None:
    """And evaluation reports the plain loss: that of the saved model."""
    training = {"learning_rate": 1e-2, "optim": "sgd", "max_grad_norm": 0.0, "max_steps": 6}
    moved = {}
    for name, factors in {"free": {}, "held": {"l2_sp": 50.0}}.items():
        folder = str(tmp_path / name)
        recipe = make_recipe(regularization=factors, training={**training, "output_dir": folder})
        begin = load_model(prepare(recipe)).model.base_model.state_dict()
        run = hftune.train(recipe)
        end = run.model.base_model.state_dict()
        moved[name] = sum(float((end[key].float() - begin[key]).square().sum()) for key in begin)
    assert moved["held"] < 0.5 * moved["free"]


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"regularization": {"l1": -1e-3}}, "above 0"),
        ({"regularization": {"l2_sp": 0.1}, "method": "lora"}, "held there by l2"),
        ({"regularization": {"l1": 0.1}, "method": "bitfit"}, "take l2_sp"),
        ({"regularization": {"l3": 0.1}}, "unknown key"),
    ],
)
def test_what_is_refused(
    sections: dict[str, Any], says: str, make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(RecipeError, match=says):
        make_recipe(**sections)
