# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters from a recipe: what is checked before, and what a run leaves behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hftune
from hftune import HftuneError, Recipe, RecipeError
from hftune.hub.reload_check import check_round_trip
from hftune.methods.bottleneck import BottleneckLayer
from hftune.training.build import build_trainer
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
EIGHT_BIT = {"load_in_8bit": True}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"r": 0}, "method.r: must be at least 1, got 0"),
        ({"reduction_factor": 0.5}, "method.reduction_factor: must be at least 1, got 0.5"),
        ({"placement": "inside"}, "method.placement: .*houlsby"),
        ({"dropout": 1.0}, "method.dropout: must be below 1, got 1.0"),
        ({"bottleneck_size": 8}, "method.bottleneck_size"),
    ],
)
def test_what_the_schema_refuses(
    options: dict[str, Any], says: str, make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(RecipeError, match=says):
        make_recipe(method={"name": "bottleneck", **options})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"r": 8, "reduction_factor": 4}, "method bottleneck: give r or reduction_factor"),
        ({"non_linearity": "relux"}, "method bottleneck: non_linearity: 'relux' is none of"),
        ({"reduction_factor": 64}, "reduction_factor: 64 leaves nothing of a width of 32"),
        ({"target_modules": ["densest"]}, r"method.target_modules: \['densest'\] is not in"),
        ({"target_modules": ".*densest"}, "has nothing named .*densest; the layers of its blocks"),
    ],
)
def test_what_is_refused_before_any_weight_is_loaded(
    options: dict[str, Any], says: str, make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(HftuneError, match=says):
        prepare(make_recipe(method={"name": "bottleneck", **options}))


@pytest.mark.parametrize("task", ["text-classification", "text-generation", "text2text-generation"])
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_a_run_starts_at_the_base_and_trains_adapters(
    task: str, placement: str, make_recipe: Callable[..., Recipe]
) -> None:
    plan = prepare(make_recipe(task, method={"name": "bottleneck", "placement": placement}))
    model = load_model(plan).model
    rows = plan.objective.task.collator(plan.pretrained.processor, model)(
        [plan.splits.train.dataset[i] for i in range(4)]
    )
    with torch.no_grad(), model.disable_adapter():
        expected = model.eval()(**rows).logits
    with torch.no_grad():
        assert torch.equal(model(**rows).logits, expected)
    before = {name: value.clone() for name, value in model.named_parameters()}
    build_trainer(plan, LoadedModel(model)).train()
    changed = {n for n, value in model.named_parameters() if not torch.equal(value, before[n])}
    assert any("bottleneck_up" in name for name in changed)
    assert all("bottleneck_" in name or "modules_to_save" in name for name in changed)


@pytest.mark.filterwarnings("ignore")  # bitsandbytes speaks of itself
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize("bits", [NF4, EIGHT_BIT], ids=["4bit", "8bit"])
def test_quantized_bases(
    bits: dict[str, Any], placement: str, make_recipe: Callable[..., Recipe], tiny_decoder: Path
) -> None:
    """The adapters sit on the quantized layers themselves, start at zero, and learn."""
    model = {"path": str(tiny_decoder), "quantization": bits}
    method = {"name": "bottleneck", "placement": placement, "r": 4}
    training = {"max_steps": 10, "learning_rate": 1e-2}
    plan = prepare(make_recipe("text-generation", training, model=model, method=method))
    adapted = load_model(plan).model
    layers = [module for module in adapted.modules() if isinstance(module, BottleneckLayer)]
    assert {type(layer.base_layer).__name__ for layer in layers} <= {"Linear4bit", "Linear8bitLt"}
    rows = plan.objective.task.collator(plan.pretrained.processor)(
        [plan.splits.train.dataset[i] for i in range(4)]
    )
    with torch.no_grad():
        started = adapted.eval()(**rows).logits
        with adapted.disable_adapter():
            assert torch.equal(started, adapted(**rows).logits)
    trainer = build_trainer(plan, LoadedModel(adapted))
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_the_lines_of_the_card_load_it(make_recipe: Callable[..., Recipe]) -> None:
    """A process that knows nothing of the run gets its logits from the model card's lines."""
    training = {"learning_rate": 1e-2}
    method = {"name": "bottleneck", "r": 4, "placement": "parallel"}
    run = hftune.train(make_recipe("text-classification", training, method=method))
    card = (run.model_path / "README.md").read_text(encoding="utf-8")
    assert "import hftune.methods.bottleneck  # tells PEFT of the type" in card
    assert "`KeyError: 'BOTTLENECK'`" in card
    model = run.model.eval().float()
    check_round_trip(run.model_path, run.metadata, model, run.tokenizer, adapter=True)
    again = hftune.load(run.path)
    rows = again.tokenizer(["alpha red", "beta blue one"], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(again.model(**rows).logits, model(**rows).logits)


def test_the_card_of_another_method_has_no_such_line() -> None:
    from hftune.hub.model_card import model_card
    from hftune.models.save import ModelMetadata

    metadata = ModelMetadata(task="text-generation", base_model="x", method="lora")
    assert "hftune.methods" not in model_card(metadata, {}, adapter=True)
