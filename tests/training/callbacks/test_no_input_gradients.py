# SPDX-License-Identifier: Apache-2.0
"""The backward pass ends at the lowest layer that trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from torch import Tensor, nn

from hftune import Recipe
from hftune.models.module_names import layer_names
from hftune.training.build import build_trainer
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare
from hftune.training.speedups import without_padding

LORA = {"name": "lora", "r": 2, "target_modules": "all-linear"}
UPPER = {"name": "lora", "r": 2, "target_modules": ["query", "value"]}


def reached(recipe: Recipe) -> list[int]:
    """Return the layers whose output gets a gradient in a step."""
    plan = prepare(recipe)
    model: Any = load_model(plan).model
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = [base.get_submodule(name) for name in layer_names(base)]
    found: set[int] = set()

    def watch(number: int) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            states: Tensor = output[0] if isinstance(output, tuple) else output
            if states.requires_grad:
                states.register_hook(lambda gradient: found.add(number))

        return note

    for number, layer in enumerate(layers):
        layer.register_forward_hook(watch(number))
    trainer = build_trainer(plan, LoadedModel(model))
    with without_padding(plan, trainer):
        trainer.train()
    assert len(layers) == 2
    return sorted(found)


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("padding_free", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("head_only", []),
        ({"name": "freeze", "freeze_layers": 0, "freeze_embeddings": True}, [1]),
        ({**UPPER, "layers_to_transform": [1]}, [1]),
        ("full", [0, 1]),
        (LORA, [0, 1]),
    ],
    ids=["head", "freeze", "upper lora", "full", "lora"],
)
def test_no_gradient_below_the_first_trained_layer(
    method: Any,
    expected: list[int],
    padding_free: bool,
    recomputed: bool,
    make_recipe: Callable[..., Recipe],
    labelled_file: Path,
) -> None:
    data = {"path": str(labelled_file), "padding_free": padding_free}
    given = {"max_steps": 1, "activation_checkpointing": recomputed}
    assert reached(make_recipe(training=given, method=method, data=data)) == expected
