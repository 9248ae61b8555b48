# SPDX-License-Identifier: Apache-2.0
"""What a 4-bit base costs in quality, and saves in memory: QLoRA against LoRA, seed by seed.

    python benchmarks/fidelity/qlora.py                                        # 120 rows, 3 seeds
    python benchmarks/fidelity/qlora.py --rows 1000 --rate 1e-3 --seeds 0

Both train the same adapter with the same settings on the same rows; only the base differs: NF4
with double quantization, or the float32 that the checkpoint is loaded in. The target: the mean
validation loss of QLoRA is at most 0.03 nats above that of LoRA, and the base takes less than 0.35
of its float32 bytes. The weights of demo:smollm2 were rounded to 4 bits once already, in another
format; with another model the difference may be another.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from cells import RESULTS, Cell, Cells, spread
from torch import Tensor

import hftune

NATS, SHARE = 0.03, 0.35
SETTINGS: dict[str, Any] = {"model": "demo:smollm2", "data": "demo:docstrings", "eval_rows": 80,
                            "epochs": 1}  # fmt: skip
#: What both do, so that only the base differs.
ADAPTER = {"r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
SCHEDULE = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.03, "max_grad_norm": 0.3}


def main() -> None:
    """Measure the cells that are missing, and say what they show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--results", type=Path, default=RESULTS / "fidelity_qlora.json")
    options = parser.parse_args()
    cells = Cells(options.results, SETTINGS, packages=["bitsandbytes"])
    rows, rate = options.rows, options.rate
    for seed in options.seeds:
        for method in ("lora", "qlora"):
            cells.measure(
                lambda method=method, seed=seed: run_cell(method, seed, rows, rate),
                method=method, seed=seed, rows=rows, rate=rate,
            )  # fmt: skip
    measured = sorted({cell["rows"] for cell in cells.all(method="qlora")})
    cells.tell({f"{rows} rows": summary(cells, rows) for rows in measured})


def run_cell(method: str, seed: int, rows: int, rate: float) -> Cell:
    """Train one adapter."""
    with tempfile.TemporaryDirectory(prefix="fidelity-") as folder:
        recipe = hftune.Recipe(
            task="text-generation",
            model=SETTINGS["model"],
            data={
                "path": SETTINGS["data"],
                "max_length": 128,
                "max_train_samples": rows,
                "max_eval_samples": SETTINGS["eval_rows"],
            },
            method={"name": method, **ADAPTER},
            training={
                "output_dir": f"{folder}/run",
                "learning_rate": rate,
                "num_train_epochs": SETTINGS["epochs"],
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
            "validation_loss": round(run.metrics["eval_loss"], 4),
            "base_bytes": packed,
            "base_bytes_float32": plain,
            "seconds": round(seconds),
            "device": next(run.model.parameters()).device.type,
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


def summary(cells: Cells, rows: int) -> dict[str, Any]:
    """Return both losses, the difference, and what the base takes."""
    losses = {
        method: spread([cell["validation_loss"] for cell in cells.all(method=method, rows=rows)])
        for method in ("lora", "qlora")
    }
    nats = losses["qlora"]["mean"] - losses["lora"]["mean"]
    shares = [
        c["base_bytes"] / c["base_bytes_float32"] for c in cells.all(method="qlora", rows=rows)
    ]
    return losses | {
        "nats_above_lora": {"value": round(nats, 4), "kept": nats <= NATS},
        "base_share": {"value": round(max(shares), 3), "kept": max(shares) < SHARE},
    }


if __name__ == "__main__":
    main()
