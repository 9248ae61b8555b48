# SPDX-License-Identifier: Apache-2.0
"""What mixup, SAM, NEFTune and more dropout bring where labelled rows are few.

    python benchmarks/regularization.py

Full fine-tuning of MiniLM on 400 docstrings: which package is each from? All variants see the same
rows, the same number of epochs and the same rate, that of ``benchmarks/fidelity``. Test rows, of
modules that training has not seen, judge the last weights. The file of results is written after
every training, and what is there is not run again.
"""

import tempfile
import time
from typing import Any

from datasets import Dataset
from fidelity.cells import RESULTS, Cell, Cells, spread

import hftune
from hftune.data.load_rows import load_split
from hftune.tasks.text_classification import TextClassification
from hftune.training.plan.sources import hold_out

SETTINGS: dict[str, Any] = {
    "model": "demo:minilm",
    "data": "demo:docstrings",
    "train_rows": 400,
    "test_rows": 500,
    "epochs": 3,
    "batch_size": 16,
    "max_length": 32,
    "rate": 3e-4,
}
SEEDS = [0, 1]
#: What differs from plain training.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mixup": {"loss": {"name": "mixup", "alpha": 0.2}},
    "sam": {"regularization": {"sam": 0.05}},
    "neftune": {"training": {"neftune_noise_alpha": 5.0}},
    "dropout": {"regularization": {"dropout": 0.2}},
}
FIGURES = ("f1_macro", "accuracy", "loss")


def main() -> None:
    """Run what is not there yet, and tell what it shows."""
    cells = Cells(RESULTS / "regularization.json", SETTINGS)
    for seed in SEEDS:
        for name in VARIANTS:
            cells.measure(lambda n=name, s=seed: measure(n, s),  # type: ignore[misc]
                          variant=name, seed=seed)  # fmt: skip
    cells.tell(
        {
            name: {figure: spread([cell[figure] for cell in cells.all(variant=name)])
                   for figure in (*FIGURES, "train_loss", "cpu_s")}
            for name in VARIANTS
        }
    )  # fmt: skip


def rows(seed: int) -> tuple[Dataset, Dataset]:
    """Return rows to train on, and rows to judge by; no module is torn apart."""
    task = TextClassification()
    every = load_split(SETTINGS["data"])
    every = task.select(every, task.columns(every.column_names, {}))
    taught, judged = (
        every.select(part).shuffle(seed=seed) for part in hold_out(every, task, 0.3, seed)
    )
    numbers = range(SETTINGS["train_rows"]), range(SETTINGS["test_rows"])
    return taught.select(numbers[0]), judged.select(numbers[1])


def measure(name: str, seed: int) -> Cell:
    """Train one variant and judge it."""
    train, test = rows(seed)
    variant = VARIANTS[name]
    with tempfile.TemporaryDirectory() as folder:
        recipe = hftune.Recipe(
            task="text-classification",
            model={"path": SETTINGS["model"], "classifier_pooling": "mean"},
            data={"max_length": SETTINGS["max_length"], "validation_size": 0},
            method="full",
            **{key: variant[key] for key in ("loss", "regularization") if key in variant},
            training={
                "output_dir": f"{folder}/run",
                "seed": seed,
                "num_train_epochs": SETTINGS["epochs"],
                "per_device_train_batch_size": SETTINGS["batch_size"],
                "learning_rate": SETTINGS["rate"],
                "train_sampling_strategy": "group_by_length",
                "eval_strategy": "no",
                "save_strategy": "no",
                **variant.get("training", {}),
            },
        )
        start = time.process_time()
        run = hftune.train(recipe, train_dataset=train)
        seconds = time.process_time() - start
        judged = hftune.evaluate(run, test)
        return {
            **{figure: round(judged[f"eval_{figure}"], 4) for figure in FIGURES},
            "train_loss": round(run.metrics["train_loss"], 4),
            "cpu_s": round(seconds, 1),
        }


if __name__ == "__main__":
    main()
