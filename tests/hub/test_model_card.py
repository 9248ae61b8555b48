# SPDX-License-Identifier: Apache-2.0
"""The card's header parses, and its code, run as it stands, loads what was trained."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from torch import Tensor
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RobertaConfig,
    set_seed,
)

from hftune.hub.model_card import model_card
from hftune.models.pooling import pool_by_mean
from hftune.models.save import ModelMetadata, save_model
from tests.hub.adapters import lora_classifier

LABELS = ['say "hi"', "naïve", "c"]
FACTS = ModelMetadata(
    task="text-classification", base_model="org/base", method="full", label_names=LABELS,
    max_length=64,
)  # fmt: skip
GENERATION = ModelMetadata(task="text-generation", base_model="demo:smollm2", method="lora")
SIZE: dict[str, Any] = {
    "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 66, "pad_token_id": 0, "num_labels": 3,
}  # fmt: skip
CONFIGS = {
    "bert": BertConfig(**SIZE),
    "roberta": RobertaConfig(**SIZE),
    "distilbert": DistilBertConfig(
        vocab_size=20, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=3
    ),
    "albert": AlbertConfig(**SIZE, embedding_size=12),
    "electra": ElectraConfig(**SIZE, embedding_size=12),
    "deberta-v2": DebertaV2Config(**SIZE),
    "mpnet": MPNetConfig(**SIZE),
}


def test_thresholds_and_a_prior_are_said() -> None:
    def told(**options: Any) -> str:
        return model_card(dataclasses.replace(FACTS, task_options=options), {}, adapter=False)

    assert "hftune.json" not in told(thresholds=None, prior=None)
    assert "given by thresholds, which `hftune.json` holds" in told(thresholds={"c": 0.2})
    assert "by thresholds and the shares of a prior" in told(thresholds=0.3, prior="uniform")


def header(card: str) -> dict[str, Any]:
    start, text, _ = card.split("---\n", 2)
    assert start == ""
    return YAML(typ="safe").load(text)


def code(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def batch() -> dict[str, Tensor]:
    ids = torch.randint(5, 20, (2, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@torch.no_grad()
def run(card: str, folder: Path) -> tuple[Tensor, Any]:
    """Execute the card's code and return the logits of its model, and its tokenizer."""
    names: dict[str, Any] = {}
    for block in code(card):
        exec(compile(block.replace("FOLDER", str(folder)), "README.md", "exec"), names)
    return names["model"].eval()(**batch()).logits, names["tokenizer"]


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("metadata", [FACTS, GENERATION])
def test_header_and_code(metadata: ModelMetadata, adapter: bool) -> None:
    card = model_card(metadata, {}, adapter=adapter)
    meta = header(card)
    assert meta["library_name"] == ("peft" if adapter else "transformers")
    assert meta["pipeline_tag"] == metadata.task
    assert meta["tags"] == ["hftune", metadata.method]
    (block,) = code(card)
    compile(block, "README.md", "exec")
    assert ("AutoPeftModelFor" in block) == adapter
    assert card.endswith("\n")
    assert not card.endswith("\n\n")


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("org/base", "org/base"),
        ("demo:minilm", None),
        ("/data/models/base", None),
        ("./models", None),
    ],
)
def test_only_a_hub_id_is_a_base_model(base: str, expected: str | None) -> None:
    card = model_card(dataclasses.replace(FACTS, base_model=base), {}, adapter=False)
    assert header(card).get("base_model") == expected


def test_figures_are_those_of_the_validation_rows() -> None:
    metrics = {"eval_loss": 0.12345, "eval_accuracy": 1, "loss": 9.0, "eval_runtime": 3.0}
    card = model_card(FACTS, metrics, adapter=False)
    assert re.findall(r"\| (\w+) \| ([\d.]+) \|", card) == [
        ("loss", "0.1235"),
        ("accuracy", "1.0000"),
    ]
    assert "|" not in model_card(FACTS, {"loss": 9.0}, adapter=False)


def test_says_labels_and_length() -> None:
    card = model_card(FACTS, {}, adapter=False)
    assert 'Labels: `say "hi"`, `naïve`, `c`.' in card
    assert "Texts were cut at 64 tokens." in card
    assert "cut at" not in model_card(GENERATION, {}, adapter=False)


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_mean_pooling_as_the_card_writes_it(tmp_path: Path, tiny_encoder: Path, name: str) -> None:
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIGS[name]).eval()
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    metadata = dataclasses.replace(FACTS, classifier_pooling="mean")
    card = model_card(metadata, {}, adapter=False)
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    save_model(tmp_path / "model", model, tokenizer, metadata, card)
    plain = model(**batch()).logits
    pool_by_mean(model)
    logits, _ = run((tmp_path / "model" / "README.md").read_text(), tmp_path / "model")
    torch.testing.assert_close(logits, model(**batch()).logits)
    assert (logits - plain).abs().max() > 1e-3


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_adapter_as_the_card_loads_it(tmp_path: Path, tiny_encoder: Path, pooling: str) -> None:
    model = lora_classifier(tiny_encoder, pooling)
    metadata = dataclasses.replace(FACTS, base_model=str(tiny_encoder), classifier_pooling=pooling)
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    card = model_card(metadata, {}, adapter=True)
    save_model(tmp_path / "model", model, tokenizer, metadata, card)
    logits, loaded = run(card, tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(logits, model(**batch()).logits)
    assert loaded("red")["input_ids"] == tokenizer("red")["input_ids"]
