# SPDX-License-Identifier: Apache-2.0
"""How soon a stream gives its first batch, and how fast it goes on, on a million rows.

    python benchmarks/streaming.py --output benchmarks/results/streaming.json

Writes a jsonl of 1,000,000 prompts with completions into a temporary folder, prepares a run of
demo:smollm2 on it, and takes batches of 4. The weights are not loaded: what is measured begins
after them. For comparison, the time that reading the whole file as a table takes.
"""

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from itertools import islice
from pathlib import Path

ROWS = 1_000_000
BATCH = 4
BATCHES = 500


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
        figures = measure(path)
    figures |= {
        "rows": arguments.rows,
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
    }
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(path: Path) -> dict[str, float]:
    """Return seconds to the prepared run, to the first batch, and batches a second afterwards."""
    from torch.utils.data import DataLoader

    from hftune import Recipe
    from hftune.data.load import load_part
    from hftune.training.prepare import prepare

    recipe = Recipe(
        task="text-generation",
        model="demo:smollm2",
        data={"path": str(path), "streaming": True, "validation_size": 100, "max_length": 256},
        training={"max_steps": 100, "use_cpu": True},
    )
    begin = time.perf_counter()
    plan = prepare(recipe)
    prepared = time.perf_counter()
    batches = iter(
        DataLoader(plan.stream, batch_size=BATCH, collate_fn=plan.task.collator(plan.tokenizer))
    )
    next(batches)
    first = time.perf_counter()
    for _ in islice(batches, BATCHES):
        pass
    last = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    load_part(str(path))
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
