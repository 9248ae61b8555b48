# SPDX-License-Identifier: Apache-2.0
"""What a teacher brings: a student of a third of the layers, few labels, and answers that are kept.

    python benchmarks/distillation.py                                          # demo:docstrings
    python benchmarks/distillation.py sections.csv --name sections

The teacher is MiniLM with its six layers, fine-tuned; the student is its layers 0 and 5, from the
pretrained weights. Of each seed's rows a third judges, whole modules of the docstrings; of the
rest one half has labels and taught the teacher, the other is taken without labels. Students are
trained for equally many epochs, on labels alone and with the teacher; then with so few labels as
FEW. All figures are of the test rows and of the last epoch; none was chosen by them. The clock
tells the processor's seconds of the optimizer steps of an epoch, with kept answers and with a
teacher that runs in every step. Results are
kept in benchmarks/results/distillation_NAME.json after every training, and what is there is not
run again.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from datasets import Dataset
from fidelity.cells import RESULTS, Cell, Cells, spread
from transformers import TrainerCallback

import hftune
from hftune.data.load_rows import load_split
from hftune.runs.run import Run
from hftune.tasks.text_classification import TextClassification
from hftune.training.plan.sources import hold_out

SETTINGS: dict[str, Any] = {
    "model": "demo:minilm", "keep_layers": [0, 5], "rows": 2000, "few": 100, "max_length": 32,
    "batch_size": 16, "teacher_epochs": 4, "student_epochs": 6, "teacher_rate": 2e-4,
    "student_rate": 3e-4, "temperature": 2.0, "alpha": 0.9,
}  # fmt: skip
TEST_SHARE = 1 / 3
STUDENTS = (
    "labels",
    "teacher",
    "teacher and more rows",
    "teacher's layers and more rows",
    "few labels",
    "few labels and teacher",
)
#: Which of the teacher's hidden states a student is drawn to, where it is.
LAYERS = {1: 3, 2: 6}
CLOCKED, CLOCKED_BATCHES = 3, (16, 32)


def main() -> None:
    """Measure the cells that are missing, and say what they show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", default="demo:docstrings")
    parser.add_argument("--name", default="docstrings", help="of the file of results")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--students", nargs="+", default=STUDENTS, choices=STUDENTS)
    options = parser.parse_args()
    cells = Cells(RESULTS / f"distillation_{options.name}.json", SETTINGS)
    for seed in options.seeds:
        missing = [name for name in options.students if not cells.all(student=name, seed=seed)]
        if not missing:
            continue
        parts = divided(options.data, seed)
        with tempfile.TemporaryDirectory(prefix="distillation-") as folder:
            # Its figures are kept; its weights only as long as students need them.
            teacher = taught(parts["labelled"], None, seed, Path(folder) / "teacher")
            figures = judge(teacher, parts["test"])
            cells.measure(partial(dict, figures), student="none: the teacher", seed=seed)
            for name in missing:
                work = partial(student, name, parts, teacher, seed, Path(folder))
                cells.measure(work, student=name, seed=seed)
    for size in CLOCKED_BATCHES:
        if not cells.all(clock="running", batch_size=size):
            clocks(cells, options.data, size)
    cells.tell(summary(cells))


def divided(data: str, seed: int) -> dict[str, Dataset]:
    """Return rows with labels, rows whose labels are not looked at, and rows to judge on."""
    task = TextClassification()
    rows = load_split(data)
    rows = task.select(rows, task.columns(rows.column_names, named(data)))
    drawn = np.random.default_rng(seed).permutation(len(rows))[: SETTINGS["rows"]]
    rows = rows.select(drawn)
    kept, judged = hold_out(rows, task, TEST_SHARE, seed)
    halves = np.array_split(kept, 2)
    parts = {"labelled": halves[0], "bare": halves[1], "test": judged}
    return {name: rows.select(indices) for name, indices in parts.items()}


def named(data: str) -> dict[str, str]:
    """Return the columns of the demo rows."""
    demo = {"group": "module", "text": "summary", "label": "package"}
    return demo if data == "demo:docstrings" else {}


def taught(
    rows: Dataset,
    teacher: Run | None,
    seed: int,
    folder: Path,
    *,
    cache: bool | None = None,
    shallow: bool = False,
    layers: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    **training: Any,
) -> Run:
    """Train one model; with a teacher, rows without a label are the teacher's alone."""
    keep = {"keep_layers": SETTINGS["keep_layers"]} if shallow or teacher is not None else {}
    kind = "student" if keep else "teacher"
    beside = {} if teacher is None else {"distillation": {
        "teacher": str(teacher.path), "temperature": SETTINGS["temperature"],
        "alpha": SETTINGS["alpha"], "cache": cache,
        **({"hidden_states": LAYERS} if layers else {})}}  # fmt: skip
    recipe = hftune.Recipe(
        task="text-classification",
        model={"path": SETTINGS["model"], **keep},
        data={"validation_size": 0, "max_length": SETTINGS["max_length"]},
        method="full",
        **beside,
        training={
            "output_dir": str(folder),
            "seed": seed,
            "num_train_epochs": SETTINGS[f"{kind}_epochs"],
            "learning_rate": SETTINGS[f"{kind}_rate"],
            "per_device_train_batch_size": SETTINGS["batch_size"],
            "train_sampling_strategy": "group_by_length",
            "save_strategy": "no",
            "logging_steps": 10,
            **training,
        },
    )
    return hftune.train(recipe, train_dataset=rows, callbacks=callbacks)


def student(name: str, parts: dict[str, Dataset], teacher: Run, seed: int, folder: Path) -> Cell:
    """Train one student and judge it."""
    labelled = parts["labelled"]
    if name.startswith("few labels"):
        labelled = first_of_each(parts["bare"], SETTINGS["few"])
    rows, training = labelled, {}
    if name.endswith("more rows") or name == "few labels and teacher":
        rows = with_bare(labelled, parts["bare"])
    elif name == "few labels":  # as many steps as with all rows, or it would hardly train
        epochs = SETTINGS["student_epochs"] * len(parts["bare"]) / len(labelled) / 2
        training = {"num_train_epochs": epochs}
    start = time.process_time()
    run = taught(
        rows,
        teacher if "teacher" in name else None,
        seed,
        folder / f"student, {name}",
        shallow=True,
        layers="layers" in name,
        **training,
    )
    figures = judge(run, parts["test"])
    return figures | {"rows": len(rows), "cpu_s": round(time.process_time() - start, 1)}


def first_of_each(rows: Dataset, number: int) -> Dataset:
    """Return so many rows, of each label in turn, as long as it has any."""
    labels = np.asarray(rows["label"][:])
    places = [np.flatnonzero(labels == label).tolist() for label in sorted(set(labels))]
    chosen: list[int] = []
    while len(chosen) < number:
        for place in places:
            if place and len(chosen) < number:
                chosen.append(place.pop(0))
    return rows.select(sorted(chosen))


def with_bare(labelled: Dataset, bare: Dataset) -> Dataset:
    """Return rows with labels, and others whose labels are taken away."""
    known = set(labelled["text"][:])
    texts = [text for text in bare["text"] if text not in known]
    return Dataset.from_dict(
        {"text": [*labelled["text"], *texts], "label": [*labelled["label"], *[None] * len(texts)]}
    )


def clocks(cells: Cells, data: str, batch_size: int) -> None:
    """Measure epochs of a student whose teacher's answers are there already, and are not kept.

    They take turns, so that what else the machine does falls on both. How well the teacher was
    trained does not matter here.
    """
    rows = divided(data, 0)["labelled"]
    found: dict[str, list[float]] = {"kept": [], "running": []}
    with tempfile.TemporaryDirectory(prefix="distillation-") as folder:
        teacher = taught(rows, None, 0, Path(folder) / "teacher", num_train_epochs=0.1)
        for number in range(CLOCKED + 1):
            for name, seconds in found.items():
                clock = Clock()
                taught(rows, teacher, 0, Path(folder) / f"{name}-{number}",
                       cache=name == "kept", num_train_epochs=1,
                       per_device_train_batch_size=batch_size,
                       callbacks=[clock])  # fmt: skip
                seconds.append(round(clock.seconds, 2))
    for name, seconds in found.items():  # the first one asked the teacher
        figures = {"cpu_s": seconds[1:], "rows": len(rows)}
        cells.measure(partial(dict, figures), clock=name, batch_size=batch_size)


class Clock(TrainerCallback):
    """Processor seconds of the optimizer steps."""

    def on_train_begin(self, *given: Any, **more: Any) -> None:
        """Start."""
        self.begun = time.process_time()

    def on_train_end(self, *given: Any, **more: Any) -> None:
        """Stop."""
        self.seconds = time.process_time() - self.begun


def judge(run: Run, test: Dataset) -> Cell:
    """Return the figures of the test rows."""
    found = hftune.evaluate(run, test)
    return {
        "accuracy": round(100 * found["eval_accuracy"], 2),
        "f1_macro": round(100 * found["eval_f1_macro"], 2),
        "parameters": run.metrics["parameters"],
    }


def above(cells: Cells, student: str, other: str) -> list[float]:
    """Return by how many points of accuracy one is above the other, for each seed of both."""
    first, second = (
        {cell["seed"]: cell["accuracy"] for cell in cells.all(student=name)}
        for name in (student, other)
    )
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def summary(cells: Cells) -> dict[str, Any]:
    """Return the means over the seeds, how far students are from the teacher, and the clock."""
    told: dict[str, Any] = {
        name: {
            "accuracy": spread([cell["accuracy"] for cell in found]),
            "f1_macro": spread([cell["f1_macro"] for cell in found]),
            "seeds": len(found),
        }
        for name in ("none: the teacher", *STUDENTS)
        if (found := cells.all(student=name))
    }
    for name in STUDENTS:
        if apart := above(cells, name, "none: the teacher"):
            told[name]["above_teacher"] = spread(apart)
    if apart := above(cells, "few labels and teacher", "few labels"):
        told["few labels and teacher"]["above_few_labels"] = spread(apart)
    for size in CLOCKED_BATCHES:
        kept, running = (cells.all(clock=name, batch_size=size) for name in ("kept", "running"))
        if kept and running:
            faster = median(running[0]["cpu_s"]) / median(kept[0]["cpu_s"])
            told[f"times_faster_in_batches_of_{size}"] = round(faster, 2)
    return told


if __name__ == "__main__":
    main()
