# SPDX-License-Identifier: Apache-2.0
"""Pruning beside regularizers and initializations that are made for pretrained weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

import hftune
from hftune import Recipe, Run
from hftune.methods.prune.weights import drop_smallest, prunable_weights

SPARSITY = 0.5
CUBIC = {"schedule": "cubic", "begin_step": 1, "end_step": 4}


def pruned(
    make_recipe: Callable[..., Recipe], folder: Path, method: dict[str, Any], **sections: Any
) -> Run:
    """Train a few steps of plain SGD, so that a gradient of zero moves nothing."""
    training = {
        "output_dir": str(folder), "max_steps": 6, "learning_rate": 1e-2, "optim": "sgd",
        "max_grad_norm": 0.0, "weight_decay": 0.0, "lr_scheduler_type": "constant",
        "warmup_steps": 0,
    }  # fmt: skip
    method = {"name": "prune", "sparsity": SPARSITY, **method}
    return hftune.train(make_recipe(method=method, training=training, **sections))


def weights_of(model: Any) -> dict[str, Tensor]:
    """Return the prunable weights of the trunk, without the trunk's own name in theirs."""
    trunk = model.base_model
    return {name: trunk.get_parameter(name).detach() for name in prunable_weights(trunk)}


def count_zeros(weights: dict[str, Tensor]) -> int:
    return sum(int((weight == 0).sum()) for weight in weights.values())


def test_l2_sp_holds_the_weights_that_stay(
    make_recipe: Callable[..., Recipe], tmp_path: Path, tiny_encoder: Path
) -> None:
    """They are pulled to the pretrained values, and those that went are not pulled back."""
    start = weights_of(AutoModel.from_pretrained(tiny_encoder))
    total = sum(weight.numel() for weight in start.values())
    distance = {}
    for name, strength in {"free": {}, "held": {"l2_sp": 50.0}}.items():
        run = pruned(make_recipe, tmp_path / name, CUBIC, regularization=strength)
        end = weights_of(run.model)
        assert count_zeros(end) == round(total * SPARSITY)
        moved = [(end[key] - start[key])[end[key] != 0] for key in start]
        distance[name] = float(torch.cat(moved).square().sum())
    assert distance["free"] > 0
    assert distance["held"] < 0.5 * distance["free"]


def test_drop_connect_leaves_zeros_and_trains_the_rest(
    make_recipe: Callable[..., Recipe], tmp_path: Path, tiny_encoder: Path
) -> None:
    start = weights_of(AutoModel.from_pretrained(tiny_encoder))
    total = sum(weight.numel() for weight in start.values())
    method = {"structure": "2:4"}
    run = pruned(make_recipe, tmp_path / "run", method, regularization={"drop_connect": 0.5})
    end = weights_of(run.model)
    assert count_zeros(end) == round(total * SPARSITY)
    moved = torch.cat([(end[key] != start[key])[end[key] != 0] for key in start])
    assert moved.float().mean() > 0.9


@pytest.mark.parametrize(
    "drawn", [{"reinit_top_layers": 1}, {"reinit_modules": ["layer.1"]}], ids=["layers", "modules"]
)
def test_a_layer_that_is_drawn_anew_is_pruned_and_learns(
    drawn: dict[str, Any], make_recipe: Callable[..., Recipe], tmp_path: Path, tiny_encoder: Path
) -> None:
    """The first pruning sees the new weights: of both layers the smallest go."""
    start = weights_of(AutoModel.from_pretrained(tiny_encoder))
    run = pruned(make_recipe, tmp_path / "run", {}, initialization=drawn)
    end = weights_of(run.model)
    assert count_zeros(end) == round(sum(w.numel() for w in start.values()) * SPARSITY)
    kept = {key: (end[key] - start[key])[end[key] != 0].square().mean().sqrt() for key in start}
    below = [float(value) for key, value in kept.items() if "layer.0." in key]
    above = [float(value) for key, value in kept.items() if "layer.1." in key]
    assert len(below) == len(above) == 6
    assert max(below) < 0.02 < 0.1 < min(above)  # one trained on, the other began elsewhere
    old = dict(zip(start, drop_smallest([w.abs() for w in start.values()], count_zeros(end)),
                   strict=True))  # fmt: skip
    assert any(not torch.equal(old[key], end[key] != 0) for key in start if "layer.1." in key)
