# SPDX-License-Identifier: Apache-2.0
"""Layers of a loss: they train, are resumed to the bit, and are not in the finished model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

import hftune
from hftune import Recipe, Run
from hftune.training.build import build_trainer
from hftune.training.callbacks.auxiliary_layers import AuxiliaryLayers
from hftune.training.load_model import load_model
from hftune.training.plan.prepare import prepare
from hftune.training.trainer import LOSS_FILE
from tests.stop_at import StopAt

Make = Callable[..., Recipe]


@pytest.fixture
def matched(make_recipe: Make, tiny_encoder: Path, tmp_path: Path) -> Make:
    """Build a recipe with a teacher twice as wide, whose hidden states are matched."""
    folder = tmp_path / "teacher"
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(folder)
    known = json.loads((tiny_encoder / "config.json").read_text())
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=known["vocab_size"], hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64,
        id2label=dict(enumerate(["blue", "green", "red"])),
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    distillation = {"teacher": str(folder), "hidden_states": {1: 1, 2: 3}}
    return lambda **given: make_recipe(distillation=distillation, **given)


def test_they_train_and_are_clipped_by_their_own_norm(matched: Make) -> None:
    training = {"learning_rate": 1e-2, "optim": "sgd", "lr_scheduler_type": "constant",
                "warmup_steps": 0, "max_grad_norm": 0.5, "max_steps": 1}  # fmt: skip
    plan = prepare(matched(training=training))
    trainer = build_trainer(plan, load_model(plan))
    assert trainer.auxiliary_layers is not None
    before = {name: value.clone() for name, value in trainer.auxiliary_layers.state().items()}
    assert {name: tuple(value.shape) for name, value in before.items()} == {
        "1.weight": (64, 32), "1.bias": (64,), "2.weight": (64, 32), "2.bias": (64,),
    }  # fmt: skip
    trainer.train()
    moves = [value - before[name] for name, value in trainer.auxiliary_layers.state().items()]
    moved = torch.cat([move.flatten() for move in moves])
    # One step of SGD: the rate times a gradient whose norm was clipped.
    assert moved.norm().item() == pytest.approx(1e-2 * 0.5, rel=1e-4)
    assert all(parameter.grad is None for parameter in trainer.auxiliary_layers.layers.parameters())


def test_a_resumed_run_ends_with_the_same_bits(matched: Make, tmp_path: Path) -> None:
    def recipe(name: str) -> Recipe:
        training = {"output_dir": str(tmp_path / name), "max_steps": 6, "learning_rate": 1e-2,
                    "eval_strategy": "no", "save_strategy": "steps", "save_steps": 2,
                    "save_total_limit": 5}  # fmt: skip
        return matched(training=training)

    whole = hftune.train(recipe("whole"))
    with pytest.raises(KeyboardInterrupt):
        hftune.train(recipe("stopped"), callbacks=[StopAt(3)])
    resumed = hftune.train(Run(tmp_path / "stopped").recipe, resume=True)
    for file in (
        "model/model.safetensors",
        f"checkpoints/checkpoint-6/{LOSS_FILE}",
    ):
        mine, theirs = (load_file(run.path / file) for run in (whole, resumed))
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items()), file
    names = load_file(whole.model_path / "model.safetensors").keys()
    assert set(names) == set(hftune.load(whole.path).model.state_dict())
    assert not [name for name in names if name[0].isdigit()]
    later, earlier = (
        load_file(whole.checkpoints / f"checkpoint-{step}" / LOSS_FILE) for step in (6, 2)
    )
    assert (later["1.weight"] - earlier["1.weight"]).abs().max() > 1e-3


def test_a_group_of_their_own() -> None:
    model, layers = nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 3)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.5)
    AuxiliaryLayers(layers).join(optimizer, torch.device("cpu"), 0.25)
    group = optimizer.param_groups[1]
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.0)
    assert list(map(id, group["params"])) == list(map(id, layers.parameters()))
