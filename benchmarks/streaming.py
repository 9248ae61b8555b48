# SPDX-License-Identifier: Apache-2.0
"""How soon a stream gives its first batch, and how fast it goes on, on a million rows.

    python benchmarks/streaming.py --output benchmarks/results/streaming.json

Writes a jsonl of 1,000,000 prompts with completions into a temporary folder, prepares a run of
demo:smollm2 on it, and takes batches of 4. For comparison, the time that reading the whole file as
a table takes. Then ``hftune.train``, in a process of its own, trains on the stream: what counts are
the seconds from the loaded model to the end of the first optimizer step.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

ROWS = 1_000_000
BATCH = 4
BATCHES = 500
RECIPE: dict[str, Any] = {"task": "text-generation", "model": "demo:smollm2", "method": "lora"}
DATA = {"streaming": True, "validation_size": 100, "max_length": 256}
LIMITS = {"model_to_first_step_seconds": 10}


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        with path.open("w", encoding="utf-8") as file:
            for number in range(arguments.rows):
                row = {"prompt": f"What comes after {number}? ", "completion": f"{number + 1}."}
                file.write(json.dumps({**row, "note": "x" * 200}) + "\n")
        figures: dict[str, Any] = measure(path)
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=fresh) as process:
            figures |= process.submit(train, path).result()
    figures |= {
        "limits": LIMITS,
        "rows": arguments.rows,
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
    }
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def train(path: Path) -> dict[str, float]:
    """Train two steps, and return the seconds from the loaded model to the first one's end."""
    from transformers import TrainerCallback

    import hftune

    class Clock(TrainerCallback):
        """Notes when the Trainer has its model, and when each step ends."""

        def __init__(self) -> None:
            self.times: dict[str, list[float]] = {"loaded": [], "stepped": []}

        def on_init_end(self, *_: Any, **__: Any) -> None:
            self.times["loaded"].append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times["stepped"].append(time.perf_counter())

    training = {
        "max_steps": 2,
        "per_device_train_batch_size": BATCH,
        "output_dir": str(path.with_name("run")),
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    data = {**DATA, "path": str(path), "validation_size": 0}
    clock = Clock()
    began = time.perf_counter()
    hftune.train(hftune.Recipe(**RECIPE, data=data, training=training), callbacks=[clock])
    loaded, (first, second) = clock.times["loaded"][0], clock.times["stepped"]
    return {
        "start_to_model_seconds": round(loaded - began, 2),
        "model_to_first_step_seconds": round(first - loaded, 2),
        "second_step_seconds": round(second - first, 2),
        "training_peak_memory_mib": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        ),
    }


def measure(path: Path) -> dict[str, float]:
    """Return seconds to the prepared run, to the first batch, and batches a second afterwards."""
    from torch.utils.data import DataLoader

    from hftune import Recipe
    from hftune.data.load_rows import load_split
    from hftune.training.plan.prepare import prepare

    recipe = Recipe(**RECIPE, data={**DATA, "path": str(path)}, training={"max_steps": 100})
    begin = time.perf_counter()
    plan = prepare(recipe)
    prepared = time.perf_counter()
    batches = iter(
        DataLoader(
            plan.splits.stream,
            batch_size=BATCH,
            collate_fn=plan.objective.task.collator(plan.pretrained.processor),
        )
    )
    next(batches)
    first = time.perf_counter()
    for _ in islice(batches, BATCHES):
        pass
    last = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    load_split(str(path))
    whole = time.perf_counter()
    return {
        "prepare_seconds": round(prepared - begin, 2),
        "first_batch_seconds": round(first - prepared, 2),
        "rows_per_second": round(BATCH * BATCHES / (last - first), 1),
        "peak_memory_mib": round(memory),
        "whole_file_as_a_table_seconds": round(whole - last, 2),
        "whole_file_peak_memory_mib": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        ),
    }


if __name__ == "__main__":
    main()
