# SPDX-License-Identifier: Apache-2.0
"""Two optimizers as one: each steps its own, and a saved state goes on with the same bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Adam, AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR

from hftune import Recipe
from hftune.optimization.combined_optimizer import CombinedOptimizer, RowAdam
from hftune.training.build import build_trainer
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare


def model_and_optimizer() -> tuple[nn.Sequential, CombinedOptimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    groups = [
        {"params": [model[0].weight], "part": 0, "weight_decay": 0.1},
        {"params": [model[0].bias, *model[1].parameters()], "part": 1, "weight_decay": 0.0},
    ]
    parts = [(Muon, {"lr": 0.02}), (AdamW, {"lr": 0.02, "betas": (0.8, 0.9)})]
    return model, CombinedOptimizer(groups, parts, 0.02)


def step(model: nn.Module, optimizer: Any, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    optimizer.zero_grad()
    (model(torch.randn(8, 4, generator=generator)) ** 2).sum().backward()
    optimizer.step()


def test_each_part_is_stepped_by_its_own_class() -> None:
    model, both = model_and_optimizer()
    other, _ = model_and_optimizer()
    muon = Muon([other[0].weight], lr=0.02, weight_decay=0.1)
    adamw = AdamW(
        [other[0].bias, *other[1].parameters()], lr=0.02, betas=(0.8, 0.9), weight_decay=0.0
    )
    for number in range(4):
        step(model, both, number)
        other.zero_grad()
        generator = torch.Generator().manual_seed(number)
        (other(torch.randn(8, 4, generator=generator)) ** 2).sum().backward()
        muon.step()
        adamw.step()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_saved_state_goes_on_with_the_same_bits() -> None:
    """With a schedule, whose rates both parts must see after the load."""
    whole, optimizer = model_and_optimizer()
    schedule = LambdaLR(optimizer, lambda done: 1 / (1 + done))
    for number in range(6):
        if number == 3:
            weights = {k: v.clone() for k, v in whole.state_dict().items()}
            state, rates = optimizer.state_dict(), schedule.state_dict()
            kept = torch.load(_saved([state, rates]), weights_only=True)
        step(whole, optimizer, number)
        schedule.step()
    again, optimizer = model_and_optimizer()
    schedule = LambdaLR(optimizer, lambda done: 1 / (1 + done))
    again.load_state_dict(weights)
    optimizer.load_state_dict(kept[0])
    schedule.load_state_dict(kept[1])
    for number in range(3, 6):
        step(again, optimizer, number)
        schedule.step()
    for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def _saved(thing: Any) -> Any:
    import io

    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return file


def test_rows_without_gradient_stand_still() -> None:
    """Rows that are seen step as Adam's do at the first step; the others and their moments do not
    move, also later."""
    table = nn.Embedding(5, 3)
    start = table.weight.detach().clone()
    plain = nn.Parameter(start.clone())
    optimizer, adam = RowAdam([table.weight], lr=0.1), Adam([plain], lr=0.1)
    for number, rows in enumerate(([1, 3], [1, 4])):
        gradient = torch.zeros(5, 3)
        gradient[rows] = 1.0 + number
        table.weight.grad, plain.grad = gradient, gradient.clone()
        optimizer.step()
        adam.step()
        assert table.weight.grad is gradient
        if number == 0:
            torch.testing.assert_close(table.weight[rows], plain[rows])
            after_one = table.weight.detach().clone()
    assert torch.equal(table.weight[[0, 2]], start[[0, 2]])
    assert torch.equal(table.weight[3], after_one[3])
    assert not torch.equal(plain[3], after_one[3])  # Adam's momentum goes on
    assert optimizer.state[table.weight]["exp_avg"][0].eq(0).all()


def test_tokens_that_no_text_holds_keep_their_embeddings(
    make_recipe: Callable[..., Recipe],
) -> None:
    training = {"optim": "sparse_adam", "eval_strategy": "no", "save_strategy": "no",
                "learning_rate": 0.1}  # fmt: skip
    plan = prepare(make_recipe(training=training))
    model = load_model(plan).model
    table = model.get_input_embeddings().weight
    start = table.detach().clone()
    build_trainer(plan, LoadedModel(model)).train()
    seen = {token for row in plan.splits.train.dataset["input_ids"] for token in row}
    moved = (table != start).any(dim=1).nonzero().flatten().tolist()
    assert moved
    assert set(moved) <= seen
    assert len(seen) < len(table)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_muon_has_the_matrices_of_the_layers(
    method: str, make_recipe: Callable[..., Recipe]
) -> None:
    training = {"optim": "muon", "eval_strategy": "no", "save_strategy": "no"}
    plan = prepare(make_recipe(training=training, method=method))
    trainer = build_trainer(plan, load_model(plan))
    optimizer = trainer.create_optimizer()
    assert [type(part) for part in optimizer.parts] == [Muon, AdamW]
    matrices = {id(p) for group in optimizer.parts[0].param_groups for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert (id(parameter) in matrices) == (".layer." in name and parameter.ndim == 2), name
    adam = optimizer.parts[1].param_groups[0]
    assert adam["betas"] == (0.9, 0.999)
