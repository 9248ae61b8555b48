# SPDX-License-Identifier: Apache-2.0
"""Seconds that `hftune explain` takes for a text of 64 tokens, model loaded: pass and all files.

    python benchmarks/explain.py

Demo models as they come, the classifier with a new head. Median of 5 after one that warms up, which
is the first figure; sizes of the files in KiB. Goal: 3 s. Results go to
benchmarks/results/explain.json.
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

import hftune
from hftune.hub.load import load_tokenizer, model_location
from hftune.hub.save import ModelFacts, save_model
from hftune.tasks import TASKS

RESULTS = Path(__file__).parent / "results" / "explain.json"
CASES = {
    "demo:minilm": ModelFacts(
        task="text-classification", base_model="demo:minilm", label_names=["LABEL_0", "LABEL_1"]
    ),
    "demo:smollm2": ModelFacts(task="text-generation", base_model="demo:smollm2"),
}
TEXT = "The river runs past the old mill and turns south before it meets the sea. " * 8
TOKENS = 64


def main() -> None:
    """Measure both models, print and keep the figures."""
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


def measure(name: str, facts: ModelFacts) -> dict[str, Any]:
    """Save the model as a run would, load it, and time what a user waits for."""
    with tempfile.TemporaryDirectory() as place:
        folder, output = Path(place) / "model", Path(place) / "out"
        location = model_location(name)
        base = TASKS[facts.task].resolve()().auto_model.from_pretrained(location)
        save_model(folder, base, load_tokenizer(location), facts, "")
        run = hftune.load(folder)
        run.model.eval()
        load = run.tokenizer  # both are there before the clock starts
        assert load is not None
        walls, cpus = [], []
        for _ in range(6):
            wall, cpu = time.perf_counter(), sum(os.times()[:2])
            found = hftune.explain(run, TEXT, max_length=TOKENS, output=output)
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


if __name__ == "__main__":
    main()
