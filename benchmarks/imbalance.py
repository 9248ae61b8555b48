# SPDX-License-Identifier: Apache-2.0
"""What helps where classes are unequal: weights, focal loss, logit adjustment, thresholds, a prior.

    python benchmarks/imbalance.py                                       # demo:docstrings, thinned
    python benchmarks/imbalance.py sections.csv --name sections          # rows as they are
    python benchmarks/imbalance.py sms.csv --name sms --rows 1200

Rows are thinned, if asked, so that the largest class has RATIO times the rows of the smallest, and
split into three parts whose classes have the same shares: training, validation, which chooses the
epoch and the thresholds, and test, which judges. Groups, as modules of docstrings, are never torn
apart. Each loss is trained once a seed and judged twice, by its highest probability and by
thresholds; plain cross-entropy also with all classes taken as equally common. Results are kept
in benchmarks/results/imbalance_NAME.json after every training, and what is there is not run again.
"""

import argparse
import json
import platform
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from datasets import Dataset

import hftune
from hftune.data.load import load_part
from hftune.tasks.text_classification import TextClassification
from hftune.training.run import Run
from hftune.training.sources import hold_out

RESULTS = Path(__file__).parent / "results"
LOSSES: dict[str, dict[str, Any]] = {
    "cross_entropy": {"name": "cross_entropy"},
    "balanced": {"name": "cross_entropy", "class_weights": "balanced"},
    "effective_number": {"name": "cross_entropy", "class_weights": "effective_number"},
    "focal": {"name": "focal"},
    "logit_adjustment": {"name": "cross_entropy", "logit_adjustment": 1.0},
}
TEST_SHARE, VALIDATION_SHARE = 0.35, 0.25
FIGURES = ("f1_macro", "recall_macro", "accuracy", "loss")


def main() -> None:
    """Run what is not there yet, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", default="demo:docstrings")
    parser.add_argument("--name", default="docstrings", help="of the file of results")
    parser.add_argument("--ratio", type=float, help="of the largest class to the smallest")
    parser.add_argument("--rows", type=int, default=1800, help="at most, all parts together")
    parser.add_argument("--model", default="demo:minilm")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if options.data == "demo:docstrings" and options.ratio is None:
        options.ratio = 10.0
    path = RESULTS / f"imbalance_{options.name}.json"
    settings = {name: getattr(options, name) for name in ("ratio", "rows", "model", "epochs")}
    kept = json.loads(path.read_text()) if path.exists() else {"settings": settings, "cells": {}}
    if kept["settings"] != settings:
        parser.error(f"{path} has other settings: {kept['settings']}; give another --name")
    for seed in options.seeds:
        train, test = parts(options.data, options.ratio, options.rows, seed)
        for name in options.losses:
            cell = f"{name}, seed {seed}"
            if cell in kept["cells"]:
                continue
            kept["cells"][cell] = measure(name, train, test, seed, options)
            kept |= {"versions": versions(), "means": means(kept["cells"])}
            path.write_text(json.dumps(kept, indent=2) + "\n")
    print(json.dumps(kept["means"], indent=2))


def parts(data: str, ratio: float | None, number: int, seed: int) -> tuple[Dataset, Dataset]:
    """Return rows to train and choose on, and rows to judge on."""
    task = TextClassification()
    rows = load_part(data)
    rows = task.select(rows, task.columns(rows.column_names, {}))
    rows = rows.select(thinned(rows["label"][:], ratio, number, seed))
    kept, judged = hold_out(rows, task, TEST_SHARE, seed)
    return rows.select(kept), rows.select(judged)


def thinned(labels: list[str], ratio: float | None, number: int, seed: int) -> np.ndarray:
    """Return indices of rows, drawn by seed; from class to class they fall by one factor."""
    generator = np.random.default_rng(seed)
    counts = Counter(labels).most_common()
    if ratio is not None:
        steps = len(counts) - 1
        falling = [ratio ** (-i / steps) for i in range(steps + 1)]
        counts = [(name, round(n * f)) for (name, n), f in zip(counts, falling, strict=True)]
    share = min(1.0, number / sum(n for _, n in counts))
    chosen = [
        generator.permutation(np.flatnonzero(np.asarray(labels) == name))[: round(n * share)]
        for name, n in counts
    ]
    return np.sort(np.concatenate(chosen))


def measure(
    name: str, train: Dataset, test: Dataset, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Train one loss and judge its decisions."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = hftune.Recipe(
            task="text-classification",
            model=options.model,
            data={"validation_size": VALIDATION_SHARE, "max_length": 64},
            method={"name": "lora", "r": 16, "lora_alpha": 32},
            loss=LOSSES[name],
            evaluation={"thresholds": "best_f1"},
            training={
                "output_dir": f"{folder}/run",
                "seed": seed,
                "num_train_epochs": options.epochs,
                "learning_rate": 1e-3,
                "train_sampling_strategy": "group_by_length",
            },
        )
        start = time.process_time()
        run = hftune.train(recipe, train_dataset=train)
        seconds = time.process_time() - start
        counts = json.loads((run.path / "data.json").read_text())["classes"]
        judged = {"thresholds": judge(run, test, counts)}
        judged["highest"] = judge(run, test, counts, thresholds=None)
        if name == "cross_entropy":
            seen = {label: count / sum(counts.values()) for label, count in counts.items()}
            prior = {"prior": "uniform", "seen_prior": seen}
            judged["uniform prior"] = judge(run, test, counts, thresholds=None, **prior)
    rows = {"train_classes": counts, "test_rows": len(test), "cpu_s": round(seconds, 1)}
    return {**rows, "judged": judged}


def judge(run: Run, test: Dataset, counts: dict[str, int], **decisions: Any) -> dict[str, float]:
    """Return the figures of one way to decide; the rarest class is that of the training rows."""
    run.facts.task_options.update(decisions)
    found = hftune.evaluate(run, test)
    rarest = min(counts, key=lambda label: counts[label])
    figures = {name: found[f"eval_{name}"] for name in FIGURES}
    figures["f1_rarest"] = found["eval_per_class"][rarest]["f1"]
    return {name: round(value, 4) for name, value in figures.items()}


def means(cells: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return loss and decision -> figure -> mean over the seeds there are."""
    found: dict[str, list[dict[str, float]]] = {}
    for cell, result in cells.items():
        for decision, figures in result["judged"].items():
            found.setdefault(f"{cell.partition(',')[0]}, {decision}", []).append(figures)
    return {
        key: {name: round(mean(one[name] for one in several), 4) for name in several[0]}
        | {"seeds": len(several)}
        for key, several in found.items()
    }


def versions() -> dict[str, str]:
    """Return what decides the figures beside the seeds."""
    packages = ("torch", "transformers", "peft", "scikit-learn", "numpy")
    return {name: version(name) for name in packages} | {"machine": platform.machine()}


if __name__ == "__main__":
    main()
