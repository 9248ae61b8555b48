# SPDX-License-Identifier: Apache-2.0
"""Adapters on the bases that they belong to, however those are loaded; and plain PEFT folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import hftune
from hftune import HftuneError, Recipe, Run
from hftune.models.load_generator import load_language_model

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}

pytestmark = pytest.mark.filterwarnings("ignore")  # bitsandbytes speaks of itself


@pytest.fixture(scope="module")
def base(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of the test's own, which it may replace."""
    folder = tmp_path_factory.mktemp("base") / "model"
    shutil.copytree(tiny_encoder, folder)
    return folder


@pytest.fixture
def run(make_recipe: Callable[..., Recipe], base: Path) -> Run:
    """A LoRA classifier."""
    training = {"eval_strategy": "no", "save_strategy": "no", "max_steps": 1}
    return hftune.train(
        make_recipe("text-classification", training, model=str(base), method="lora")
    )


def cast(base: Path, dtype: torch.dtype) -> None:
    model = AutoModel.from_pretrained(base, dtype=dtype)
    model.save_pretrained(base)


def with_facts(run: Run, **changes: Any) -> None:
    path = run.model_path / "hftune.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_base_in_another_type_or_quantized_passes(run: Run, base: Path) -> None:
    whole = (base / "model.safetensors").read_bytes()
    for dtype in (torch.bfloat16, torch.float16):
        cast(base, dtype)
        assert isinstance(hftune.load(run.path).model, PeftModel)
        (base / "model.safetensors").write_bytes(whole)
    with_facts(run, quantization={**NF4, "llm_int8_skip_modules": ["classifier", "pooler"]})
    loaded = hftune.load(run.path).model
    kinds = {type(part).__name__ for part in loaded.modules()}
    assert "Linear4bit" in kinds


@pytest.mark.parametrize("quantization", [None, NF4])
def test_every_verb_refuses_a_base_that_was_trained_on(
    quantization: Any, run: Run, base: Path, tmp_path: Path
) -> None:
    whole = (base / "model.safetensors").read_bytes()
    model = AutoModel.from_pretrained(base)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.001)
    model.save_pretrained(base)
    spared = ["classifier", "pooler"]
    with_facts(run, quantization=quantization and {**quantization, "llm_int8_skip_modules": spared})
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "alpha red", "label": "red"}\n')
    verbs: dict[str, Callable[[], Any]] = {
        "load": lambda: hftune.load(run.path).model,
        "evaluate": lambda: hftune.evaluate(run.path, str(rows)),
        "predict": lambda: hftune.predict(run.path, str(rows), tmp_path / "out.jsonl"),
        "push": lambda: hftune.push(run.path, "me/it", base="me/base", dry_run=True),
        "explain": lambda: hftune.explain(run.path, "alpha red", output=tmp_path / "seen"),
    }
    try:
        for verb in verbs.values():
            with pytest.raises(HftuneError, match="was trained on other weights") as raised:
                verb()
            assert str(run.model_path) in raised.value.message
            assert str(base) in raised.value.message
    finally:
        (base / "model.safetensors").write_bytes(whole)


@pytest.fixture
def plain(tiny_decoder: Path, tmp_path: Path) -> Path:
    """What PEFT alone saves."""
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def test_a_plain_adapter_loads_on_what_it_names(plain: Path, tmp_path: Path) -> None:
    loaded, tokenizer = load_language_model(str(plain))
    batch = tokenizer("alpha", return_tensors="pt")
    config = json.loads((plain / "adapter_config.json").read_text())
    model = LlamaForCausalLM.from_pretrained(config["base_model_name_or_path"])
    expected = PeftModel.from_pretrained(model, plain).eval()
    ids = batch["input_ids"]
    assert torch.equal(loaded(input_ids=ids).logits, expected(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("config", "adapter_config.json: damaged"),
        ("cut", "adapter_model.safetensors: damaged"),
        ("missing", "adapter_model.safetensors: missing"),
        ("lacking", r"it lacks base_model\..*lora_A.* and 1 more"),
        ("shape", "does not load: size mismatch for .*lora_A"),
        ("type", "the adapter does not load"),
    ],
)
def test_a_damaged_plain_adapter_is_named(how: str, says: str, plain: Path) -> None:
    config, weights = plain / "adapter_config.json", plain / "adapter_model.safetensors"
    stored = load_file(weights)
    first = sorted(stored)[:2]
    if how == "config":
        config.write_text(config.read_text()[:20])
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif how == "missing":
        weights.unlink()
    elif how == "lacking":
        save_file({key: value for key, value in stored.items() if key not in first}, weights)
    elif how == "shape":
        save_file({**stored, first[0]: stored[first[0]].repeat(2, 1)}, weights)
    else:
        config.write_text(config.read_text().replace('"LORA"', '"NEXT_YEARS"'))
    with pytest.raises(HftuneError, match=says) as raised:
        load_language_model(str(plain))
    assert str(plain) in raised.value.message
    assert raised.value.hint


def test_chat_knows_an_adapter_of_hftune_by_its_folder(
    make_recipe: Callable[..., Recipe], tiny_decoder: Path
) -> None:
    training = {"eval_strategy": "no", "save_strategy": "no", "max_steps": 1}
    run = hftune.train(make_recipe("text-generation", training, method="lora"))
    load_language_model(str(run.model_path))
    metadata = json.loads((run.model_path / "hftune.json").read_text())
    name = next(iter(metadata["base_fingerprint"]))
    shape = metadata["base_fingerprint"][name].split()[0]
    metadata["base_fingerprint"][name] = f"{shape} {'41200000' * 4}"
    with_facts(run, base_fingerprint=metadata["base_fingerprint"])
    for loading in (
        lambda: load_language_model(str(run.model_path)),
        lambda: hftune.chat(run.path),
    ):
        with pytest.raises(HftuneError, match=f"than {tiny_decoder} has: 1 of .*{name}"):
            loading()
    assert AutoTokenizer.from_pretrained(run.model_path)
