# SPDX-License-Identifier: Apache-2.0
"""What mixup, SAM, NEFTune and more dropout bring where labelled rows are few.

    python benchmarks/regularization.py

Full fine-tuning of MiniLM on 400 docstrings: which package is each from? All variants see the same
rows and the same number of epochs, at the rate that plain training does best at on validation rows
of the first seed. Test rows, of modules that training has not seen, judge the last weights. The
file of results is written after every training, and what is there is not run again.
"""

import tempfile
import time
from typing import Any

from datasets import Dataset
from fidelity.cells import RESULTS, Cell, Cells, spread

import hftune
from hftune.data.load import load_part
from hftune.tasks.text_classification import TextClassification
from hftune.training.sources import hold_out

SETTINGS: dict[str, Any] = {"model": "demo:minilm", "data": "demo:docstrings", "train_rows": 400,
            "test_rows": 800, "epochs": 3, "batch_size": 16, "max_length": 48}  # fmt: skip
RATES = [1e-4, 3e-4, 1e-3]
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
    for rate in RATES:
        cells.measure(lambda rate=rate: measure("plain", rate, SEEDS[0]),  # type: ignore[misc]
                      variant="plain", rate=rate, seed=SEEDS[0])  # fmt: skip
    rate = cells.chosen("validation_f1_macro", variant="plain")[0]["rate"]
    for seed in SEEDS:
        for name in VARIANTS:
            cells.measure(lambda n=name, s=seed: measure(n, rate, s),  # type: ignore[misc]
                          variant=name, rate=rate, seed=seed)  # fmt: skip
    cells.tell(
        {
            name: {figure: spread([cell[figure] for cell in cells.all(variant=name, rate=rate)])
                   for figure in (*FIGURES, "train_loss", "cpu_s")}
            for name in VARIANTS
        }
    )  # fmt: skip


def rows(seed: int) -> tuple[Dataset, Dataset, Dataset]:
    """Return rows to train on, to choose the rate by, and to judge by; no module is torn apart."""
    task = TextClassification()
    every = load_part(SETTINGS["data"])
    every = task.select(every, task.columns(every.column_names, {}))
    kept, judged = hold_out(every, task, 0.3, seed)
    taught = every.select(kept)
    train, validation = hold_out(taught, task, 0.3, seed)

    def some(part: Dataset, indices: Any, number: int) -> Dataset:
        return part.select(indices).shuffle(seed=seed).select(range(number))

    test = some(every, judged, SETTINGS["test_rows"])
    return some(taught, train, SETTINGS["train_rows"]), some(taught, validation, 300), test


def measure(name: str, rate: float, seed: int) -> Cell:
    """Train one variant and judge it."""
    train, validation, test = rows(seed)
    variant = VARIANTS[name]
    with tempfile.TemporaryDirectory() as folder:
        recipe = hftune.Recipe(
            task="text-classification",
            model={"path": SETTINGS["model"], "classifier_pooling": "mean"},
            data={"max_length": SETTINGS["max_length"]},
            method="full",
            **{key: variant[key] for key in ("loss", "regularization") if key in variant},
            training={
                "output_dir": f"{folder}/run",
                "seed": seed,
                "num_train_epochs": SETTINGS["epochs"],
                "per_device_train_batch_size": SETTINGS["batch_size"],
                "learning_rate": rate,
                "eval_strategy": "no",
                "save_strategy": "no",
                **variant.get("training", {}),
            },
        )
        start = time.process_time()
        run = hftune.train(recipe, train_dataset=train, eval_dataset=validation)
        seconds = time.process_time() - start
        judged = hftune.evaluate(run, test)
    return {
        **{figure: round(judged[f"eval_{figure}"], 4) for figure in FIGURES},
        "validation_f1_macro": round(run.metrics["eval_f1_macro"], 4),
        "train_loss": round(run.metrics["train_loss"], 4),
        "cpu_s": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
