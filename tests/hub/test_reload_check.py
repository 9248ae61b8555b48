# SPDX-License-Identifier: Apache-2.0
"""A fresh process tells a folder that loads as the card says from one that does not."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from hftune.core.errors import RunError
from hftune.hub.reload_check import _plain_environment, check_round_trip
from hftune.models.save import ModelMetadata, save_model
from tests.hub.adapters import lora_classifier

LABELS = ["red", "green", "blue"]


def adapter(
    tiny_encoder: Path, folder: Path, pooling: str = "cls"
) -> tuple[ModelMetadata, Any, Any]:
    model = lora_classifier(tiny_encoder, pooling)
    metadata = ModelMetadata(
        task="text-classification", base_model=str(tiny_encoder), method="lora", label_names=LABELS,
        classifier_pooling=pooling,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    save_model(folder, model, tokenizer, metadata, "")
    return metadata, model, tokenizer


@pytest.mark.parametrize("pooling", ["cls", pytest.param("mean", marks=pytest.mark.slow)])
def test_adapter(tmp_path: Path, tiny_encoder: Path, pooling: str) -> None:
    metadata, model, tokenizer = adapter(tiny_encoder, tmp_path / "model", pooling)
    check_round_trip(tmp_path / "model", metadata, model, tokenizer, adapter=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "auto"),
    [("text-generation", AutoModelForCausalLM), ("text2text-generation", AutoModelForSeq2SeqLM)],
)
def test_models_that_write(
    tmp_path: Path, tiny_decoder: Path, tiny_seq2seq: Path, task: str, auto: Any
) -> None:
    base = tiny_decoder if task == "text-generation" else tiny_seq2seq
    model = auto.from_pretrained(base).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    metadata = ModelMetadata(task=task, base_model="me/base")
    save_model(tmp_path / "model", model, tokenizer, metadata, "")
    check_round_trip(tmp_path / "model", metadata, model, tokenizer, adapter=False)


def change_weight(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in weights if name.endswith("lora_B.weight"))
    weights[name] = weights[name] + 0.01
    save_file(weights, folder / "adapter_model.safetensors")


def change_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": True}))
    backend = json.loads((folder / "tokenizer.json").read_text())
    backend["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(backend))


def lose_base(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(
        path.read_text().replace(
            '"base_model_name_or_path": "/', '"base_model_name_or_path": "nobody/'
        )
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_weight, "gives other logits than the run: they differ by"),
        pytest.param(change_tokenizer, "reads other tokens", marks=pytest.mark.slow),
        pytest.param(
            lose_base, "cannot load what would be sent: .*Error: ", marks=pytest.mark.slow
        ),
    ],
)
def test_damage_is_found(tmp_path: Path, tiny_encoder: Path, damage: Any, message: str) -> None:
    metadata, model, tokenizer = adapter(tiny_encoder, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(RunError, match=message):
        check_round_trip(tmp_path / "model", metadata, model, tokenizer, adapter=True)


@pytest.mark.slow
def test_other_base_is_found(tmp_path: Path, tiny_encoder: Path) -> None:
    metadata, model, tokenizer = adapter(tiny_encoder, tmp_path / "model")
    other = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=3)
    with torch.no_grad():
        other.bert.embeddings.word_embeddings.weight.mul_(1.001)
    other.base_model.save_pretrained(tmp_path / "other")
    config = tmp_path / "model" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tiny_encoder), str(tmp_path / "other")))
    with pytest.raises(RunError, match="other logits") as error:
        check_round_trip(tmp_path / "model", metadata, model, tokenizer, adapter=True)
    assert "does it hold the weights" in str(error.value.hint)


def test_launcher_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_CPU", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    plain = _plain_environment()
    assert plain.keys() <= os.environ.keys()
    assert not [name for name in plain if "RANK" in name or "ACCELERATE" in name]
    assert not {"WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"} & plain.keys()
    assert plain["PATH"] == os.environ["PATH"]
