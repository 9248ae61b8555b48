# SPDX-License-Identifier: Apache-2.0
"""Seconds that `hftune explain` takes for a text of 64 tokens, model loaded: pass and all files.

    python benchmarks/explain.py

Demo models as they come, the classifier with a new head; a T5 of the size of t5-small with random
weights, that writes 64 tokens besides, so its figure has three maps and the writing in it. Median
of 5 after one that warms up, which is the first figure; sizes of the files in KiB. Goal: 3 s.
Results go to benchmarks/results/explain.json.
"""

import json
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration, set_seed

import hftune
from hftune.models.load import load_tokenizer, pretrained_path
from hftune.models.save import ModelMetadata, save_model
from hftune.tasks import TASKS

RESULTS = Path(__file__).parent / "results" / "explain.json"
CASES = {
    "demo:minilm": ModelMetadata(
        task="text-classification", base_model="demo:minilm", label_names=["LABEL_0", "LABEL_1"]
    ),
    "demo:smollm2": ModelMetadata(task="text-generation", base_model="demo:smollm2"),
    "random T5, as t5-small": ModelMetadata(task="text2text-generation", base_model="none"),
}
TEXT = "The river runs past the old mill and turns south before it meets the sea. " * 8
TOKENS = 64


def main() -> None:
    """Measure the models, print and keep the figures."""
    figures = {name: measure(name, facts) for name, facts in CASES.items()}
    for name, row in figures.items():
        print(name, row)
    packages = ("torch", "transformers", "matplotlib", "numpy")
    result = {
        "command": "python benchmarks/explain.py",
        "versions": {name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "models": figures,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def measure(name: str, facts: ModelMetadata) -> dict[str, Any]:
    """Save the model as a run would, load it, and time what a user waits for."""
    with tempfile.TemporaryDirectory() as place:
        folder, output = Path(place) / "model", Path(place) / "out"
        t5 = facts.task == "text2text-generation"
        location = random_t5(Path(place) / "t5") if t5 else pretrained_path(name)
        base = TASKS[facts.task].resolve()().auto_model.from_pretrained(location)
        save_model(folder, base, load_tokenizer(location), facts, "")
        run = hftune.load(folder)
        run.model.eval()
        load = run.tokenizer  # both are there before the clock starts
        assert load is not None
        walls, cpus = [], []
        for _ in range(6):
            wall, cpu = time.perf_counter(), sum(os.times()[:2])
            options = {"generate": TOKENS} if t5 else {}
            found = hftune.explain(run, TEXT, max_length=TOKENS, output=output, **options)
            walls.append(time.perf_counter() - wall)
            cpus.append(sum(os.times()[:2]) - cpu)
        layers, heads, _, tokens = found.maps[0].weights.shape
        return {
            "layers": layers,
            "heads": heads,
            "tokens": tokens,
            "first_s": round(walls[0], 2),
            "seconds": round(median(walls[1:]), 2),
            "cpu_seconds": round(median(cpus[1:]), 2),
            "kib": {path.name: path.stat().st_size // 1024 for path in sorted(output.iterdir())},
        }


def random_t5(folder: Path) -> str:
    """Save a T5 that reads the tokens of MiniLM."""
    set_seed(0)
    size = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
    tokens = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 102}
    T5ForConditionalGeneration(T5Config(vocab_size=30522, **size, **tokens)).save_pretrained(folder)
    load_tokenizer(pretrained_path("demo:minilm")).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
