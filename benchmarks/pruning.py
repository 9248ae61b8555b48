# SPDX-License-Identifier: Apache-2.0
"""Does a pruned model get smaller or faster? The demo encoder, pruned each way, on the same rows.

    python benchmarks/pruning.py

Nothing is trained, since size and speed do not depend on it; what a recipe's run loses in quality
stands in its metrics.json. For each way: parameters, zeros, the bytes of model.safetensors, plain
and through gzip, and the processor seconds of a forward pass on one thread, of which the ways take
turns. Results go to benchmarks/results/pruning.json.
"""

import argparse
import gzip
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from hftune.core.files import atomic_write_json
from hftune.methods.prune import Prune
from hftune.models.load import pretrained_path
from hftune.tasks.context import RunContext

RESULTS = Path(__file__).parent / "results" / "pruning.json"
ROWS, TOKENS = 32, 64
WAYS: dict[str, dict[str, Any] | None] = {
    "whole": None,
    "unstructured 0.5": {"sparsity": 0.5},
    "unstructured 0.8": {"sparsity": 0.8},
    "2:4": {"structure": "2:4"},
    "ffn 0.25": {"structure": "ffn", "sparsity": 0.25},
    "ffn 0.5": {"structure": "ffn", "sparsity": 0.5},
}


def main() -> None:
    """Prune, measure in turns, write one row for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo:minilm")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = pretrained_path(options.model)
    models = {name: pruned(place, way) for name, way in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(options.rounds + 1):
        for name, model in models.items():
            taken = forward(model)
            if round_number:  # the first one warms up
                seconds[name].append(taken)
    whole = statistics.median(seconds["whole"])
    rows = {}
    for name, model in models.items():
        taken = statistics.median(seconds[name])
        rows[name] = {**size(model), "seconds": round(taken, 4), "speed": round(whole / taken, 2)}
        print(name, rows[name])
    about = {
        "model": options.model,
        "batch": [ROWS, TOKENS],
        "threads": 1,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    atomic_write_json(RESULTS, {"environment": about, "ways": rows})


def pruned(place: str, way: dict[str, Any] | None) -> Any:
    """Return the model, pruned, as a finished run would save it."""
    model: Any = AutoModel.from_pretrained(place).eval()
    if way is None:
        return model
    method = Prune(**way)
    method.apply(model, RunContext(task="text-classification"))
    method.prune(model, method.config.sparsity)
    return method.finish(model)


def forward(model: Any) -> float:
    """Return the processor seconds of a batch, which is equal for every model."""
    ids = torch.randint(1000, 20_000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        began = time.process_time()
        model(input_ids=ids)
        return time.process_time() - began


def size(model: Any) -> dict[str, int]:
    """Return how large the model and its file are."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = (Path(folder) / "model.safetensors").read_bytes()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "zeros": sum(int((p == 0).sum()) for p in model.parameters()),
        "bytes": len(weights),
        "gzip_bytes": len(gzip.compress(weights, 6)),
    }


if __name__ == "__main__":
    main()
