# SPDX-License-Identifier: Apache-2.0
"""What a 4-bit base costs in quality, and saves in memory: QLoRA against LoRA, seed by seed.

    python benchmarks/fidelity/qlora.py --seeds 0 1 2

Both train the same adapter with the same settings on the same rows; only the base differs: NF4
with double quantization, or the float32 that the checkpoint is loaded in. The target: the mean
validation loss of QLoRA is at most 0.03 nats above that of LoRA, and the base takes less than 0.35
of its float32 bytes. Cells are kept in benchmarks/results/qlora.json as they are done; a second
start goes on with those that are missing. The weights of demo:smollm2 were rounded to 4 bits once
already, in another format; with another model the difference may be another.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

import hftune

RESULTS = Path(__file__).parents[1] / "results" / "qlora.json"
PACKAGES = ("hftune", "torch", "transformers", "peft", "bitsandbytes")
NATS, SHARE = 0.03, 0.35
#: What both do, so that only the base differs.
ADAPTER = {"r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
SCHEDULE = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.03, "max_grad_norm": 0.3}


def main() -> None:
    """Run the cells that are missing and print both means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo:smollm2")
    parser.add_argument("--data", default="demo:docstrings")
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--eval-rows", type=int, default=120)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    settings = {key: value for key, value in vars(given).items() if key != "seeds"}
    cells: list[dict[str, Any]] = read_cells()
    for seed in given.seeds:
        for method in ("lora", "qlora"):
            cell = {"method": method, "seed": seed, "settings": settings}
            if any(cell.items() <= done.items() for done in cells):
                continue
            cells.append({**cell, **measure(given, method, seed)})
            write_cells(cells)
    print_summary([cell for cell in cells if cell["settings"] == settings])


def read_cells() -> list[dict[str, Any]]:
    """Return what is measured already."""
    if not RESULTS.exists():
        return []
    cells: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"]
    return cells


def write_cells(cells: list[dict[str, Any]]) -> None:
    """Keep all cells; the file is whole at any time."""
    text = {"command": "python benchmarks/fidelity/qlora.py", "cells": cells}
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
    partial.replace(RESULTS)


def measure(given: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """Train one adapter."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = hftune.Recipe(
            task="text-generation",
            model=given.model,
            data={
                "path": given.data,
                "max_length": 128,
                "max_train_samples": given.rows,
                "max_eval_samples": given.eval_rows,
            },
            method={"name": method, **ADAPTER},
            training={
                "output_dir": str(Path(folder) / "run"),
                "learning_rate": given.rate,
                "num_train_epochs": given.epochs,
                "seed": seed,
                "eval_strategy": "no",
                **SCHEDULE,
            },
        )
        start = time.perf_counter()
        run = hftune.train(recipe)
        seconds = time.perf_counter() - start
        plain, packed = base_bytes(run.model)
        return {
            "eval_loss": run.metrics["eval_loss"],
            "base_bytes": packed,
            "base_bytes_float32": plain,
            "wall_s": round(seconds, 1),
            "machine": platform.machine(),
            "device": str(next(run.model.parameters()).device),
            "versions": {name: version(name) for name in PACKAGES},
        }


def base_bytes(model: Any) -> tuple[int, int]:
    """Return what the base would take in float32, and what it takes, constants included."""
    plain = packed = 0
    for name, weight in model.named_parameters():
        if "lora_" in name:
            continue
        packed += weight.nbytes
        state = vars(weight).get("quant_state")
        if state is None:
            plain += 4 * weight.numel()
        else:
            plain += 4 * state.shape.numel()
            parts = state.as_dict(packed=True).values()
            packed += sum(part.nbytes for part in parts if isinstance(part, Tensor))
    return plain, packed


def print_summary(cells: list[dict[str, Any]]) -> None:
    """Print the means, and whether the targets are met."""
    losses = {
        method: statistics.mean(c["eval_loss"] for c in cells if c["method"] == method)
        for method in ("lora", "qlora")
    }
    difference = losses["qlora"] - losses["lora"]
    share = max(c["base_bytes"] / c["base_bytes_float32"] for c in cells if c["method"] == "qlora")
    print(f"validation loss: lora {losses['lora']:.4f}, qlora {losses['qlora']:.4f}")
    print(
        f"difference {difference:+.4f} nats: {'met' if difference <= NATS else 'missed'} ({NATS})"
    )
    print(f"base: {share:.3f} of float32: {'met' if share < SHARE else 'missed'} ({SHARE})")


if __name__ == "__main__":
    main()
