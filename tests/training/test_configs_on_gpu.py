# SPDX-License-Identifier: Apache-2.0
"""Shipped configs on one GPU, launched as a user would: they train, resume, and load plainly."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from ruamel.yaml import YAML
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

FOUR_BIT = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "bfloat16",
}
ONE = ("--num-processes", "1")
FP8 = ("--accelerate", "single_gpu", "--mixed-precision", "fp8")
HAS_FP8 = (
    torch.cuda.is_available()
    and torch.cuda.get_device_capability() >= (8, 9)
    and find_spec("torchao") is not None
)


def write_recipe(
    folder: Path, model: Path, data: Path, training: dict[str, Any] | None = None, **sections: Any
) -> Path:
    whole = {
        "task": "text-generation",
        "data": {"path": str(data), "validation": str(data)},
        "method": "lora",
        **sections,
        "model": {"path": str(model), **sections.get("model", {})},
        "training": {
            "output_dir": str(folder / "run"),
            "per_device_train_batch_size": 4,
            "max_steps": 6,
            "logging_steps": 1,
            "learning_rate": 1e-2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_steps": 2,
            "save_total_limit": 3,
            **(training or {}),
        },
    }
    folder.mkdir(exist_ok=True)
    with (folder / "recipe.yaml").open("w") as file:
        YAML(typ="safe").dump(whole, file)
    return folder / "recipe.yaml"


def launch(recipe: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hftune", "train", str(recipe), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def check_run(run: Path, kind: str, precision: str) -> None:
    """The loss falls, and the environment says what was in force."""
    environment = json.loads((run / "environment.json").read_text())
    assert environment["distribution"]["type"] == kind
    assert environment["mixed_precision"] == precision
    logs = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [log["loss"] for log in logs if "loss" in log]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "kind", "precision"),
    [
        (("--accelerate", "single_gpu"), "NO", "bf16"),
        (("--accelerate", "single_gpu", "--mixed-precision", "fp16"), "NO", "fp16"),
        (("--accelerate", "single_gpu", "--mixed-precision", "no"), "NO", "no"),
        (("--accelerate", "fsdp2", *ONE), "FSDP2", "bf16"),
        (("--accelerate", "fsdp2", *ONE, "--mixed-precision", "fp16"), "FSDP2", "fp16"),
    ],
)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_config_trains(
    method: str,
    options: tuple[str, ...],
    kind: str,
    precision: str,
    tmp_path: Path,
    tiny_decoder: Path,
    chat_file: Path,
) -> None:
    recipe = write_recipe(tmp_path, tiny_decoder, chat_file, method=method)
    launch(recipe, *options)
    check_run(tmp_path / "run", kind, precision)
    if method == "lora":
        base = AutoModelForCausalLM.from_pretrained(tiny_decoder)
        PeftModel.from_pretrained(base, str(tmp_path / "run" / "model"))
    else:
        AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")


def test_sharded_4_bit_weights_train_and_load(
    tmp_path: Path, tiny_decoder: Path, chat_file: Path
) -> None:
    model = {"dtype": "bfloat16", "quantization": FOUR_BIT}
    recipe = write_recipe(tmp_path, tiny_decoder, chat_file, model=model)
    launch(recipe, "--accelerate", "fsdp2_qlora", *ONE)
    check_run(tmp_path / "run", "FSDP2", "bf16")
    base = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    PeftModel.from_pretrained(base, str(tmp_path / "run" / "model"))


@pytest.mark.skipif(not HAS_FP8, reason="needs torchao and a GPU with fp8 units")
@pytest.mark.parametrize("options", [FP8, ("--accelerate", "fsdp2", *ONE, *FP8[2:])])
def test_fp8_trains(
    options: tuple[str, ...], tmp_path: Path, tiny_decoder: Path, chat_file: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny_decoder, chat_file, method="full")
    launch(recipe, *options)
    check_run(tmp_path / "run", "FSDP2" if "fsdp2" in options else "NO", "fp8")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["fp8_backend"] == "AO"
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")


def test_a_sharded_run_resumes(tmp_path: Path, tiny_decoder: Path, chat_file: Path) -> None:
    """The last two steps are trained again from the checkpoint before them."""
    recipe = write_recipe(tmp_path, tiny_decoder, chat_file, {"load_best_model_at_end": False})
    launch(recipe, "--accelerate", "fsdp2", *ONE)
    run, kept = tmp_path / "run", tmp_path / "kept"
    (run / "model").rename(kept)
    (run / "checkpoints" / "checkpoint-6").rename(tmp_path / "checkpoint-6")
    launch(run, "--resume", "--accelerate", "fsdp2", *ONE)
    name = "adapter_model.safetensors"
    before, after = load_file(kept / name), load_file(run / "model" / name)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, atol=1e-4, rtol=0)
