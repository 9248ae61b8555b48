# SPDX-License-Identifier: Apache-2.0
"""Only biases and the classification head move."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hftune import HftuneError, Recipe
from hftune.training.build import build_trainer
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare


def test_biases_and_the_head_move(make_recipe: Callable[..., Recipe]) -> None:
    plan = prepare(make_recipe(method="bitfit", training={"learning_rate": 0.1}))
    assert plan.settings.arguments.learning_rate == 0.1
    model = load_model(plan).model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer = build_trainer(plan, LoadedModel(model))
    trainer.train()
    moved = {n for n, value in model.named_parameters() if not torch.equal(value, before[n])}
    biases = {
        f"{name}.bias" for name, part in model.named_modules()
        if isinstance(part, nn.Linear | nn.LayerNorm)
    }  # fmt: skip
    assert moved | {n for n in biases if "key" in n} == biases | {"classifier.weight"}
    held = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
    # Layers of 3 + 1 + 1 of 32 each with 64 between, 2 norms; the norm below; pooler; head of 3.
    assert held == 2 * (5 * 32 + 64 + 2 * 32) + 32 + 32 + (3 * 32 + 3)


def test_only_the_biases_that_are_named(make_recipe: Callable[..., Recipe]) -> None:
    """The query and the first layer of the feed-forward: half of the biases, says the paper."""
    method = {"name": "bitfit", "target_modules": ["query", "intermediate.dense"]}
    plan = prepare(make_recipe(method=method))
    assert plan.objective.meta_model is not None
    trains = {name for name, p in plan.objective.meta_model.named_parameters() if p.requires_grad}
    assert trains == {"classifier.weight", "classifier.bias"} | {
        f"bert.encoder.layer.{layer}.{part}.bias"
        for layer in (0, 1) for part in ("attention.self.query", "intermediate.dense")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("task", "method", "message"),
    [
        ("text-generation", "bitfit", "LlamaForCausalLM has no biases"),
        ("text2text-generation", "bitfit", "T5ForConditionalGeneration has no biases"),
        ("text-classification", {"name": "bitfit", "target_modules": ["q_proj"]}, "fits nothing"),
        ("text-classification", {"name": "bitfit", "target_modules": ["word_embeddings"]},
         "no biases there"),
    ],
)  # fmt: skip
def test_refused(make_recipe: Callable[..., Recipe], task: str, method: Any, message: str) -> None:
    with pytest.raises(HftuneError, match=message) as raised:
        prepare(make_recipe(task, method=method))
    if method == "bitfit":
        assert "ln_tuning" in str(raised.value.hint)


def test_a_language_model_keeps_its_pretrained_head(seq2seq_models: Any) -> None:
    """BART has biases; its head is not new."""
    from transformers import AutoModelForSeq2SeqLM

    from hftune.methods.bitfit import BitFit
    from hftune.tasks.context import RunContext

    model = AutoModelForSeq2SeqLM.from_pretrained(seq2seq_models["bart"])
    BitFit().apply(model, RunContext(task="text2text-generation"))
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains == {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    assert len(trains) > 20


def test_a_convolutional_model_has_no_table_of_tokens() -> None:
    from hftune.methods.bitfit import BitFit
    from hftune.tasks.context import RunContext
    from tests.methods.tiny_models import build

    model = build("convnext")
    BitFit().apply(model, RunContext(task="image-classification", new_modules=("classifier",)))
    trains = {name for name, weight in model.named_parameters() if weight.requires_grad}
    biases = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    assert trains == biases | {"classifier.weight"}
