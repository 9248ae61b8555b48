# SPDX-License-Identifier: Apache-2.0
"""Only listed files leave, cleaned; whatever still gives something away stops the push."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hftune.core.errors import HftuneError
from hftune.hub.model_card import model_card
from hftune.hub.staging import Staged, stage
from hftune.models.save import ModelMetadata, read_metadata, save_model
from hftune.recipe.recipe import Recipe

LABELS = ["red", "green", "blue"]


@pytest.fixture
def run(tmp_path: Path, tiny_encoder: Path) -> Path:
    """A run folder with an adapter on a local base, and everything else that may lie in one."""
    folder = tmp_path / "Some One" / "run"
    base = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=3)
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    metadata = ModelMetadata(
        task="text-classification", base_model=str(tiny_encoder), method="lora", label_names=LABELS
    )
    recipe = Recipe(
        task="text-classification", model=str(tiny_encoder), data=f"{folder}/rows.csv"
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    (folder / "metrics.json").write_text('{"eval_loss": 0.5}')
    card = model_card(metadata, {"eval_loss": 0.5}, adapter=True)
    save_model(
        folder / "model", model, AutoTokenizer.from_pretrained(tiny_encoder), metadata, card
    )  # fmt: skip
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (folder / "log.jsonl").touch()
    return folder


def staged(run: Path, tmp_path: Path, **options: Any) -> Staged:
    metadata = read_metadata(run / "model")
    assert metadata is not None
    into = tmp_path / "staged"
    into.mkdir()
    return stage(run / "model", metadata, into, **{"repo": "me/x", "base": "me/base", **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_prompt_that_started_from_a_text_names_its_tokenizer_by_id(
    run: Path, tmp_path: Path, tiny_encoder: Path
) -> None:
    config = run / "model" / "adapter_config.json"
    values = json.loads(config.read_text())
    values |= {"tokenizer_name_or_path": str(tiny_encoder), "tokenizer_kwargs": {"revision": "x"}}
    config.write_text(json.dumps(values))
    sent = json.loads((staged(run, tmp_path).folder / "adapter_config.json").read_text())
    assert sent["tokenizer_name_or_path"] == "me/base"
    assert sent["tokenizer_kwargs"] is None


def test_what_leaves(run: Path, tmp_path: Path, tiny_encoder: Path) -> None:
    model = run / "model"
    for name in ("training_args.bin", "weights.pt", "optimizer.pth", "state.pkl"):
        (model / name).write_bytes(pickle.dumps({"secret": 1}))
    (model / "notes.txt").write_text("private")
    (model / "chat_template.jinja").symlink_to(run / "log.jsonl")
    before = contents(run)
    result = staged(run, tmp_path)
    assert contents(run) == before
    assert set(result.sizes) == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "hftune.json",
        "metrics.json", "recipe.yaml", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert result.left_out == [
        "model/chat_template.jinja", "model/notes.txt", "model/optimizer.pth", "model/state.pkl",
        "model/training_args.bin", "model/weights.pt", "checkpoints/", "log.jsonl",
    ]  # fmt: skip
    sent = contents(result.folder)
    assert {name: len(content) for name, content in sent.items()} == result.sizes
    weights = "adapter_model.safetensors"
    assert sent[weights] == before[f"model/{weights}"]
    for name, content in sent.items():
        for place in (str(tiny_encoder), str(tmp_path), str(run), str(Path.cwd())):
            assert place.encode() not in content, name


def test_what_the_files_say(run: Path, tmp_path: Path) -> None:
    result = staged(run, tmp_path, revision="second")
    card = (result.folder / "README.md").read_text()
    assert "base_model: me/base\n" in card
    assert 'from_pretrained("me/x", revision="second", num_labels=3' in card
    assert 'AutoTokenizer.from_pretrained("me/x", revision="second")' in card
    assert "| loss | 0.5000 |" in card
    config = json.loads((result.folder / "adapter_config.json").read_text())
    original = json.loads((run / "model" / "adapter_config.json").read_text())
    assert config == {**original, "base_model_name_or_path": "me/base", "revision": None}
    assert result.metadata.base_model == "me/base"
    assert read_metadata(result.folder) == result.metadata
    recipe = Recipe.load(result.folder / "recipe.yaml")
    assert recipe.model.path == "me/base"
    assert recipe.data.path == "rows.csv"


def test_card_written_by_hand_keeps_its_words(run: Path, tmp_path: Path) -> None:
    (run / "model" / "README.md").write_text('# Mine\n`from_pretrained("FOLDER")`\n')
    result = staged(run, tmp_path)
    assert (result.folder / "README.md").read_text() == '# Mine\n`from_pretrained("me/x")`\n'


def test_model_folder_alone(run: Path, tmp_path: Path) -> None:
    (run / "model").rename(tmp_path / "moved")
    metadata = read_metadata(tmp_path / "moved")
    assert metadata is not None
    (tmp_path / "staged").mkdir()
    result = stage(tmp_path / "moved", metadata, tmp_path / "staged", repo="me/x", base="me/base")
    assert not {"recipe.yaml", "metrics.json"} & set(result.sizes)


def test_adapter_on_a_local_base(run: Path, tmp_path: Path) -> None:
    with pytest.raises(HftuneError, match="is not on the Hub"):
        staged(run, tmp_path, base=None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("README.md", "see ~/notes", "line 1: a local path, ~/notes"),
        ("README.md", "HF_TOKEN=hf_" + "x" * 34, "line 1: what looks like a token"),
        ("special_tokens_map.json", '\n{"a": "~/x"}', "line 2: a local path"),
        ("tokenizer_config.json", '{"chat": "the-token-in-use"}', "line 2: the token in use"),
        ("vocab.txt", "RUN", "line 1: the run's folder"),
    ],
)
def test_leak_stops_the_push(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "the-token-in-use")
    (run / "model" / name).write_text(text.replace("RUN", str(run)))
    with pytest.raises(HftuneError, match=f"{name}: {message}") as error:
        staged(run, tmp_path)
    assert "hf_xxx" not in str(error.value)
    assert "the-token-in-use" not in str(error.value)


def test_what_a_safetensors_file_says_beside_its_numbers(run: Path, tmp_path: Path) -> None:
    weights = run / "model" / "adapter_model.safetensors"
    save_file({"a": torch.zeros(2)}, weights, metadata={"trained_in": "~/run"})
    with pytest.raises(HftuneError, match="a local path, ~/run"):
        staged(run, tmp_path)


def test_pickle_under_the_name_of_safetensors(run: Path, tmp_path: Path) -> None:
    (run / "model" / "adapter_model.safetensors").write_bytes(pickle.dumps([0] * 100))
    with pytest.raises(HftuneError, match="no safetensors file"):
        staged(run, tmp_path)
