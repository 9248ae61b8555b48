# SPDX-License-Identifier: Apache-2.0
"""Rates by layer and by name: disjoint groups that are together all that trains."""

from collections.abc import Callable
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hftune import HftuneError, Recipe
from hftune.optimization.parameter_groups import (
    Grouping,
    check_groups,
    layer_scales,
    matrices_of_layers,
    parameter_groups,
    token_tables,
)
from hftune.training.build import build_trainer
from hftune.training.load_model import load_model
from hftune.training.plan.prepare import prepare

LAYERS, DECAY, RATE = 2, 0.5, 1e-3


@pytest.fixture
def encoder(tiny_encoder: Any) -> nn.Module:
    model: nn.Module = AutoModelForSequenceClassification.from_pretrained(tiny_encoder)
    return model


@pytest.fixture
def decoder(tiny_decoder: Any) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    return model


def grouped(model: nn.Module, **grouping: Any) -> list[dict[str, Any]]:
    decayed = {name for name, p in model.named_parameters() if p.ndim > 1}
    return parameter_groups(model, Grouping(**grouping), lr=RATE, weight_decay=0.1, decayed=decayed)


def rate_of(groups: list[dict[str, Any]], model: nn.Module, name: str) -> float:
    wanted = model.get_parameter(name)
    found = [g["lr"] for g in groups if any(p is wanted for p in g["params"])]
    assert len(found) == 1
    return float(found[0])


def test_a_layer_has_a_share_of_the_rate_above_it(encoder: nn.Module) -> None:
    """``rate * decay ** (L + 1 - depth)``: the head whole, then down to the embeddings."""
    groups = grouped(encoder, layer_decay=DECAY)
    layer = "bert.encoder.layer.{}.output.dense.weight"
    assert rate_of(groups, encoder, "classifier.weight") == RATE
    assert rate_of(groups, encoder, "bert.pooler.dense.bias") == RATE
    assert rate_of(groups, encoder, layer.format(1)) == RATE * DECAY
    assert rate_of(groups, encoder, layer.format(0)) == RATE * DECAY**2
    assert rate_of(groups, encoder, "bert.embeddings.LayerNorm.weight") == RATE * DECAY**3


@pytest.mark.parametrize(
    "grouping",
    [
        {"layer_decay": DECAY},
        {"param_groups": ({"params": ["classifier"], "lr": 1e-2},)},
        {"layer_decay": DECAY, "param_groups": ({"params": ["classifier", "bias"], "lr": 1e-2},
                                                {"params": r".*\.query\..*", "weight_decay": 0.5})},
    ],
)  # fmt: skip
def test_groups_are_disjoint_and_all_that_trains(grouping: dict, encoder: nn.Module) -> None:
    encoder.bert.embeddings.requires_grad_(False)
    groups = grouped(encoder, **grouping)
    grouped_ones = [id(p) for group in groups for p in group["params"]]
    assert len(grouped_ones) == len(set(grouped_ones))
    assert set(grouped_ones) == {id(p) for p in encoder.parameters() if p.requires_grad}
    assert len({group["name"] for group in groups}) == len(groups)


def test_the_first_group_that_fits_has_the_parameter(encoder: nn.Module) -> None:
    entries = ({"params": ["classifier"], "lr": 1e-2, "weight_decay": 0.3},
               {"params": ["weight"], "lr": 2e-3},
               {"params": r".*pooler.*", "lr": 5.0})  # fmt: skip
    groups = grouped(encoder, param_groups=entries)
    assert rate_of(groups, encoder, "classifier.bias") == 1e-2
    assert rate_of(groups, encoder, "bert.pooler.dense.weight") == 2e-3
    assert rate_of(groups, encoder, "bert.pooler.dense.bias") == 5.0
    decays = {g["name"]: g["weight_decay"] for g in groups}
    assert decays["classifier"] == 0.3  # said, so it holds for the bias, too
    assert decays[".*pooler.*.no_decay"] == 0.0
    assert decays["weight"] == 0.1


def test_an_adapter_has_the_layers_of_its_base(decoder: nn.Module) -> None:
    model = get_peft_model(decoder, LoraConfig(r=2, target_modules=["q_proj"]))
    scales = layer_scales(model, DECAY)
    q = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.default.weight"
    assert scales[q.format(1)] == ("layer_1", DECAY)
    assert scales[q.format(0)] == ("layer_0", DECAY**2)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (({"params": ["clasifier"], "lr": 1},), r"param_groups\[0\].params: 'clasifier' fits"),
        (({"params": ["embeddings"], "lr": 1},), "all that 'embeddings' means is frozen"),
        (({"params": ["dense"], "lr": 1}, {"params": ["pooler"], "lr": 1}), "in a group before it"),
        (({"params": "(", "lr": 1},), "no regular expression"),
    ],
)
def test_groups_that_mean_nothing(entries: tuple, says: str, encoder: nn.Module) -> None:
    encoder.bert.embeddings.requires_grad_(False)
    with pytest.raises(HftuneError, match=says):
        check_groups(encoder, Grouping(param_groups=entries))


def test_matrices_of_layers_are_neither_embeddings_nor_head(encoder: nn.Module) -> None:
    names = matrices_of_layers(encoder)
    assert len(names) == LAYERS * 6  # query, key, value, output, and two of the feed-forward
    assert all(".layer." in name and name.endswith(".weight") for name in names)
    encoder.bert.requires_grad_(False)
    with pytest.raises(HftuneError, match="no matrix inside a layer trains"):
        matrices_of_layers(encoder)


def test_tokens_whose_rows_can_stand_still(encoder: nn.Module, decoder: nn.Module) -> None:
    assert token_tables(encoder) == {"bert.embeddings.word_embeddings.weight"}
    decoder.lm_head.weight = decoder.model.embed_tokens.weight
    with pytest.raises(HftuneError, match="the head shares the embeddings"):
        token_tables(decoder)


def test_a_trainer_with_layer_decay_logs_every_rate(make_recipe: Callable[..., Recipe]) -> None:
    training = {"layer_decay": DECAY, "eval_strategy": "no", "save_strategy": "no",
                "learning_rate": RATE, "warmup_steps": 0}  # fmt: skip
    plan = prepare(make_recipe(training=training))
    trainer = build_trainer(plan, load_model(plan))
    trainer.train()
    line = trainer.state.log_history[0]
    top = line["learning_rate/head"]
    assert top == RATE  # of the step that the line tells of
    assert line["learning_rate/layer_1"] == pytest.approx(top * DECAY)
    assert line["learning_rate/embeddings.no_decay"] == pytest.approx(top * DECAY**3)


def test_loraplus_is_pefts(make_recipe: Callable[..., Recipe]) -> None:
    """B has 16 times the rate of A, in steps of the Trainer too."""
    training = {"loraplus_lr_ratio": 16, "learning_rate": RATE, "lr_scheduler_type": "constant",
                "eval_strategy": "no", "save_strategy": "no"}  # fmt: skip
    plan = prepare(make_recipe(training=training, method="lora"))
    trainer = build_trainer(plan, load_model(plan))
    trainer.train()
    groups = trainer.optimizer.param_groups
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad and "lora_" in name:
            rate = next(g["lr"] for g in groups if any(p is parameter for p in g["params"]))
            assert rate == pytest.approx(RATE * (16 if "lora_B" in name else 1)), name
    assert {id(p) for g in groups for p in g["params"]} == {
        id(p) for p in trainer.model.parameters() if p.requires_grad
    }


@pytest.mark.parametrize(
    ("rule", "rows", "expected"),
    [("linear", 8, 1e-3 * 8 / 32), ("sqrt", 8, 1e-3 / 2), ("linear", 64, 2e-3)],
)
def test_the_rate_follows_the_rows_of_a_step(
    rule: str, rows: int, expected: float, make_recipe: Callable[..., Recipe]
) -> None:
    training = {"learning_rate": 1e-3, "per_device_train_batch_size": rows // 4,
                "gradient_accumulation_steps": 4,
                "learning_rate_scaling": {"rule": rule, "batch_size": 32}}  # fmt: skip
    recipe = make_recipe(training=training)
    plan = prepare(recipe)
    assert plan.settings.arguments.learning_rate == pytest.approx(expected)
    assert plan.context().learning_rate == pytest.approx(expected)
    assert recipe.training["learning_rate"] == 1e-3  # as it is written, so that it can be repeated
