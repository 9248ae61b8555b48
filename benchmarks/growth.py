# SPDX-License-Identifier: Apache-2.0
"""How do time and memory grow with the rows of a data set, and with the length of a row?

    python benchmarks/growth.py

``rows``: MiniLM is trained for 10 steps of 16 rows on a file of 1,000, 10,000 and 100,000 texts;
told are the CPU seconds until the first step (reading, checking, tokenizing, the model) and the
most memory of the process. ``length``: LoRA on SmolLM2-135M on plain text in blocks of 64, 256 and
1,024 tokens, 1,024 tokens to a step whatever their length; told are CPU seconds of a token, and the
most memory above the loaded model. Each in a process of its own with one thread and an empty cache
of rows; rounds alternate. A round that is kept is not run again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from fidelity.cells import RESULTS, Cell, Cells
from million_rows import write_rows
from peers_side import Clock, status

from hftune.core.cache import cache_folder

GROWN = {"rows": (1_000, 10_000, 100_000), "length": (64, 256, 1024)}
STEPS = {"rows": 10, "length": 5}
BATCH, TOKENS, WARM = 16, 1024, 1


def main() -> None:
    """Measure the rounds that are missing, and say what they show; or one, for the parent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS / "growth.json")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, size = options.one
        print(json.dumps({"rows": of_rows, "length": of_length}[what](int(size))))
        return
    settings = {"steps": STEPS, "batch": BATCH, "tokens": TOKENS, "threads": 1}
    cells = Cells(options.results, settings)
    for number in range(options.rounds):
        for what, sizes in GROWN.items():
            for size in sizes:
                cells.measure(
                    lambda w=what, s=size: in_a_process(w, s), what=what, size=size, round=number
                )
    cells.tell({what: summary(cells, what) for what in GROWN})


def in_a_process(what: str, size: int) -> Cell:
    """Return what a process of its own measures, its cache empty but for models."""
    with tempfile.TemporaryDirectory(prefix="growth-cache-") as name:
        for kept in ("models", "schema"):
            (Path(name) / kept).symlink_to(cache_folder(kept))
        ran = subprocess.run(
            [sys.executable, __file__, "--one", what, str(size)],
            env={**os.environ, "HFTUNE_CACHE": name},
            check=True,
            capture_output=True,
            text=True,
        )
    cell: Cell = json.loads(ran.stdout.splitlines()[-1])
    return cell


def of_rows(size: int) -> Cell:
    """Train a classifier on a file of so many rows."""
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        file = Path(folder) / "rows.jsonl"
        subprocess.run(  # in another process, whose memory is not ours
            [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; import million_rows; "
             f"from pathlib import Path; million_rows.write_rows(Path({str(file)!r}), {size})"],
            check=True,
        )  # fmt: skip
        begun = time.process_time()
        clock = train("rows", "demo:minilm", file, folder, {"validation_size": 100}, BATCH, "full")
    return {
        "seconds_until_first_step": round(clock.at_begin - begun, 2),
        "peak_megabytes": round(max(status("VmHWM"), clock.peak_at_begin) / 2**20),
    }


def of_length(size: int) -> Cell:
    """Train LoRA on blocks of so many tokens."""
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        rows = Path(folder) / "rows.jsonl"
        write_rows(rows, 20_000)
        texts = [json.loads(line)["text"] for line in rows.read_text().splitlines()]
        file = Path(folder) / "texts.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        data = {"block_size": size, "validation_size": 0.01, "max_train_samples": 5_000}
        clock = train("length", "demo:smollm2", file, folder, data, TOKENS // size, "lora")
    told = clock.told()
    return {
        "cpu_milliseconds_a_token": round(1000 / told["tokens_per_cpu_second"], 3),
        "megabytes_above_model": told["megabytes_above_model"],
    }


class Stopwatch(Clock):
    """A clock that knows, too, when the first step began and what memory was used until then."""

    at_begin = 0.0
    peak_at_begin = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note both."""
        self.at_begin, self.peak_at_begin = time.process_time(), status("VmHWM")
        super().on_train_begin(args, state, control, **kwargs)


def train(
    what: str, model: str, file: Path, folder: str, data: dict[str, Any], batch: int, method: str
) -> Stopwatch:
    """Train a few steps on a file."""
    import hftune

    torch.set_num_threads(1)
    clock = Stopwatch(WARM)
    hftune.train(
        hftune.Recipe(
            task="text-classification" if what == "rows" else "text-generation",
            model=model,
            data={"path": str(file), **data},
            method=method,
            training={
                "output_dir": f"{folder}/run",
                "max_steps": STEPS[what],
                "per_device_train_batch_size": batch,
                "eval_strategy": "no",
                "save_strategy": "no",
            },
        ),
        callbacks=[clock],
    )
    return clock


def summary(cells: Cells, what: str) -> dict[str, Any]:
    """Return the medians of each size."""
    told: dict[str, Any] = {}
    for size in GROWN[what]:
        kept = cells.all(what=what, size=size)
        figures = [key for key in kept[0] if key not in ("what", "size", "round")]
        told[str(size)] = {key: median(cell[key] for cell in kept) for key in figures}
    return told | {"rounds": len(kept)}


if __name__ == "__main__":
    main()
