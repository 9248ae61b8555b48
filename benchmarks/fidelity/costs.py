# SPDX-License-Identifier: Apache-2.0
"""What does a step of every method cost? Seconds and peak memory, each against full fine-tuning.

    python benchmarks/fidelity/costs.py

A cell is one method in a process of its own with one thread, on the rows of ``classification.py``:
the median CPU seconds of an optimizer step after a few to warm up, and the most memory that the
process held. All methods run in turn, and then all again, so that a busy machine is busy for each.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cells import RESULTS, Cell, Cells
from transformers import TrainerCallback

import hftune

WARM, COUNTED, REPEATS = 3, 12, 2


def main() -> None:
    """Measure the cells that are missing, and say what they show; or one, for the parent."""
    from classification import METHODS, SETTINGS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--results", type=Path, default=RESULTS / "fidelity_costs.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    cells = Cells(options.results, SETTINGS | {"steps": COUNTED})
    fitted = [method for method in options.methods if METHODS[method][0]["name"] == "probe"]
    for repeat in range(REPEATS):
        for method in options.methods:
            if method not in fitted:
                cells.measure(lambda m=method: in_a_process(m), method=method, repeat=repeat)
    cells.tell(summary(cells))


def in_a_process(method: str) -> Cell:
    """Return the cell of a method, measured by a process that does nothing else."""
    command = [sys.executable, __file__, "--one", method]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    cell: Cell = json.loads(output.splitlines()[-1])
    return cell


def measure(method: str) -> Cell:
    """Train a few steps and time them."""
    from classification import METHODS, MODEL, SETTINGS, read, split

    section, rates = METHODS[method]
    parts = split(read([]), seed=0)
    clock = Clock()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fidelity-") as folder:
        recipe = hftune.Recipe(
            task="text-classification",
            model=MODEL,
            data={"max_length": SETTINGS["max_length"]},
            method=section,
            training={
                "learning_rate": rates[0],
                "max_steps": WARM + COUNTED,
                "per_device_train_batch_size": SETTINGS["batch_size"],
                "eval_strategy": "no",
                "save_strategy": "no",
                "output_dir": f"{folder}/run",
            },
        )
        hftune.train(
            recipe,
            train_dataset=parts["train"],
            eval_dataset=parts["validation"].select(range(16)),
            callbacks=[clock],
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"step_s": round(median(clock.steps[WARM:]), 4), "peak_mib": round(peak)}


class Clock(TrainerCallback):
    """Times each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start."""
        self.start = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop."""
        self.steps.append(time.process_time() - self.start)


def summary(cells: Cells) -> dict[str, Any]:
    """Return medians, and each method's step against that of full fine-tuning in its own round."""
    told = {}
    full = {cell["repeat"]: cell for cell in cells.all(method="full")}
    for method in dict.fromkeys(cell["method"] for cell in cells.all()):
        here = cells.all(method=method)
        ratios = [cell["step_s"] / full[cell["repeat"]]["step_s"] for cell in here]
        told[method] = {
            "step_s": median(cell["step_s"] for cell in here),
            "step_of_full": round(median(ratios), 2),
            "peak_mib": median(cell["peak_mib"] for cell in here),
        }
    return told


if __name__ == "__main__":
    main()
