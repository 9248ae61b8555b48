# SPDX-License-Identifier: Apache-2.0
"""A saved model is whole or absent, and remembers what it was trained on."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from hftune.models.save import ModelMetadata, read_metadata, save_model

FACTS = ModelMetadata(
    task="text-classification",
    base_model="some/base",
    base_revision="main",
    method="lora",
    label_names=["naïve", "b"],
    columns={"text": "body"},
    max_length=64,
    classifier_pooling="mean",
    config={"hidden_dropout_prob": 0.0},
)


@pytest.fixture(scope="module")
def model(tiny_encoder: Path) -> Any:
    return AutoModel.from_pretrained(tiny_encoder)


@pytest.fixture(scope="module")
def tokenizer(tiny_encoder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_encoder)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_round_trip(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    folder = tmp_path / "run" / "model"
    folder.parent.mkdir()
    save_model(folder, model, tokenizer, FACTS, "# card\n")
    assert list(folder.parent.iterdir()) == [folder]
    assert (folder / "README.md").read_text() == "# card\n"
    assert read_metadata(folder) == FACTS
    loaded = AutoModel.from_pretrained(folder).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor)
    again = AutoTokenizer.from_pretrained(folder)
    assert again("red green")["input_ids"] == tokenizer("red green")["input_ids"]


def test_facts_have_defaults(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    metadata = ModelMetadata(task="text-generation", base_model="b")
    save_model(tmp_path / "model", model, tokenizer, metadata, "")
    assert read_metadata(tmp_path / "model") == metadata


def test_replaces_the_old_folder(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    folder = tmp_path / "model"
    (folder / "nested").mkdir(parents=True)
    (folder / "adapter_model.safetensors").touch()
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "leftover").touch()
    save_model(folder, model, tokenizer, FACTS, "")
    left = set(files(folder))
    assert {"adapter_model.safetensors", "leftover"}.isdisjoint(left)
    assert not (folder / "nested").exists()
    assert "model.safetensors" in left
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("part", ["weights", "tokenizer", "metadata", "card", "rename"])
def test_crash_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Any, tokenizer: Any, part: str,
    existed: bool,
) -> None:  # fmt: skip
    folder = tmp_path / "model"
    if existed:
        folder.mkdir()
        (folder / "config.json").write_text("old")
    before = files(tmp_path)

    def crash(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    def crash_at_the_end(source: Path, target: Path) -> Path:
        if source == tmp_path / ".model.partial":
            raise OSError("disk full")
        os.rename(source, target)
        return target

    where = {
        "weights": (type(model), "save_pretrained"),
        "tokenizer": (type(tokenizer), "save_pretrained"),
        "metadata": ("hftune.models.save.atomic_write_json",),
        "card": ("hftune.models.save.atomic_write",),
        "rename": (),
    }[part]
    if where:
        monkeypatch.setattr(*where, crash)
    else:
        monkeypatch.setattr(Path, "rename", crash_at_the_end)
        monkeypatch.setattr(Path, "replace", crash_at_the_end)
    with pytest.raises(OSError, match="disk full"):
        save_model(folder, model, tokenizer, FACTS, "")
    assert files(tmp_path) == before
    assert folder.exists() == existed


def test_folder_of_others_has_no_facts(tmp_path: Path) -> None:
    assert read_metadata(tmp_path) is None
