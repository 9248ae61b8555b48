# SPDX-License-Identifier: Apache-2.0
"""Loads what another process saved: ``loading_process.py ASKED.json ANSWER.safetensors``."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification, BitsAndBytesConfig

import hftune
from hftune.methods.peft_tuners import register_tuners
from hftune.models.load import keep_unpacked


def image_model(asked: dict[str, Any]) -> Any:
    """A model as plain Transformers and PEFT load it; the types of hftune are known to PEFT."""
    quantization = BitsAndBytesConfig(**asked["quantization"]) if asked["quantization"] else None
    model = AutoModelForImageClassification.from_pretrained(
        asked["base"] or asked["folder"], quantization_config=quantization
    )
    keep_unpacked(model)
    return PeftModel.from_pretrained(model, asked["folder"]) if asked["base"] else model


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = {}
    register_tuners()
    with torch.no_grad():
        for name, folder in given["runs"].items():
            run = hftune.load(folder)
            batch = run.tokenizer(given["texts"], return_tensors="pt", padding=True)
            batch.pop("token_type_ids", None)
            answers[f"{name}.ids"] = batch["input_ids"]
            answers[f"{name}.logits"] = run.model(**batch).logits.contiguous()
        for name, asked in given["images"].items():
            pixels = torch.tensor(given["pixels"])
            answers[f"{name}.images"] = image_model(asked).eval()(pixels).logits.contiguous()
    save_file(answers, sys.argv[2])
