# SPDX-License-Identifier: Apache-2.0
"""What the average of a student's own weights teaches it, with few labels and many texts.

    python benchmarks/mean_teacher.py

MiniLM with all its layers learns from FEW labels of demo:docstrings, whole modules of which judge;
then from the same labels and as many rows more as benchmarks/distillation.py takes without labels,
taught by its own average. Both train for equally many optimizer steps, and both are judged by that
average at the end of the run; nothing was chosen by the test rows. Results are kept in
benchmarks/results/mean_teacher.json after every training, and what is there is not run again.
"""

import argparse
import tempfile
import time
from functools import partial
from typing import Any

from datasets import Dataset
from distillation import divided, first_of_each, judge, with_bare
from fidelity.cells import RESULTS, Cell, Cells, spread

import hftune

SETTINGS: dict[str, Any] = {
    "model": "demo:minilm", "few": 100, "max_length": 32, "batch_size": 16, "steps": 160,
    "rate": 2e-4, "decay": 0.95, "alpha": 0.5, "temperature": 1.0, "warmup_steps": 0.3,
}  # fmt: skip
STUDENTS = ("labels", "labels and own average")


def main() -> None:
    """Measure the cells that are missing, and say what they show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args()
    cells = Cells(RESULTS / "mean_teacher.json", SETTINGS)
    for seed in options.seeds:
        parts = divided("demo:docstrings", seed)
        for name in STUDENTS:
            cells.measure(partial(student, name, parts, seed), student=name, seed=seed)
    cells.tell(summary(cells))


def student(name: str, parts: dict[str, Dataset], seed: int) -> Cell:
    """Train one student and judge it."""
    rows = first_of_each(parts["bare"], SETTINGS["few"])
    beside: dict[str, Any] = {}
    if name != "labels":
        rows = with_bare(rows, parts["bare"])
        beside = {"distillation": {"teacher": "weight_averaging", **{
            key: SETTINGS[key] for key in ("alpha", "temperature", "warmup_steps")}}}  # fmt: skip
    start = time.process_time()
    with tempfile.TemporaryDirectory(prefix="mean-teacher-") as folder:
        recipe = hftune.Recipe(
            task="text-classification",
            model=SETTINGS["model"],
            data={"validation_size": 0, "max_length": SETTINGS["max_length"]},
            method="full",
            regularization={"weight_averaging": {"name": "ema", "decay": SETTINGS["decay"]}},
            training={
                "output_dir": folder,
                "seed": seed,
                "max_steps": SETTINGS["steps"],
                "learning_rate": SETTINGS["rate"],
                "per_device_train_batch_size": SETTINGS["batch_size"],
                "train_sampling_strategy": "group_by_length",
                "save_strategy": "no",
            },
            **beside,
        )
        figures = judge(hftune.train(recipe, train_dataset=rows), parts["test"])
    return figures | {"rows": len(rows), "cpu_s": round(time.process_time() - start, 1)}


def summary(cells: Cells) -> dict[str, Any]:
    """Return the means over the seeds, and what the average brings."""
    found = {name: {c["seed"]: c["accuracy"] for c in cells.all(student=name)} for name in STUDENTS}
    alone, taught = found.values()
    told: dict[str, Any] = {name: spread(list(of.values())) for name, of in found.items() if of}
    if both := sorted(alone.keys() & taught.keys()):
        told["gain"] = spread([taught[seed] - alone[seed] for seed in both])
    return told


if __name__ == "__main__":
    main()
