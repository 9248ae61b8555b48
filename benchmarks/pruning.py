# SPDX-License-Identifier: Apache-2.0
"""Does a pruned model get smaller or faster? Finished runs side by side, on the same rows.

    python benchmarks/pruning.py runs/full runs/prune ...

For each run: its F1 out of metrics.json, its sparsity, the bytes of model.safetensors, plain and
through gzip, and the processor seconds of a forward pass over the same batches, of which the runs
take turns. Results go to benchmarks/results/pruning.json.
"""

import argparse
import gzip
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from hftune.core.files import atomic_write_json

RESULTS = Path(__file__).parent / "results" / "pruning.json"
ROWS, TOKENS, BATCHES = 32, 64, 4


def main() -> None:
    """Measure the runs and write one row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {run.name: load(run) for run in options.runs}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(options.rounds + 1):
        for name, model in models.items():
            taken = forward(model)
            if round_number:  # the first one warms up
                seconds[name].append(taken)
    rows = {run.name: row(run, seconds[run.name]) for run in options.runs}
    first = next(iter(rows.values()))["tokens_per_second"]
    for name, figures in rows.items():
        figures["speed"] = round(figures["tokens_per_second"] / first, 2)
        print(name, figures)
    about = {
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": 1,
    }
    atomic_write_json(RESULTS, {"environment": about, "runs": rows})


def load(run: Path) -> Any:
    """Return the model of a run, as plain Transformers loads it."""
    return AutoModelForSequenceClassification.from_pretrained(run / "model").eval()


def forward(model: Any) -> float:
    """Return the processor seconds of the batches, which are equal for every model."""
    ids = torch.randint(1000, 20_000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        began = time.process_time()
        for _ in range(BATCHES):
            model(input_ids=ids)
        return time.process_time() - began


def row(run: Path, seconds: list[float]) -> dict[str, Any]:
    """Return the figures of a run."""
    metrics = json.loads((run / "metrics.json").read_text())
    weights = (run / "model" / "model.safetensors").read_bytes()
    return {
        "f1_macro": round(metrics["eval_f1_macro"], 4),
        "sparsity": round(metrics.get("sparsity", 0.0), 4),
        "parameters": metrics.get("saved_parameters", metrics["parameters"]),
        "bytes": len(weights),
        "gzip_bytes": len(gzip.compress(weights, 6)),
        "train_seconds": round(metrics["train_runtime"]),
        "tokens_per_second": round(ROWS * TOKENS * BATCHES / statistics.median(seconds)),
    }


if __name__ == "__main__":
    main()
