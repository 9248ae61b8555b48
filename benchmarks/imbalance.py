# SPDX-License-Identifier: Apache-2.0
"""What helps where classes are unequal: weights, samplers, focal loss, thresholds, a prior.

    python benchmarks/imbalance.py                                       # demo:docstrings, thinned
    python benchmarks/imbalance.py sections.csv --name sections          # rows as they are
    python benchmarks/imbalance.py sms.csv --name sms

First the test rows are set aside; they keep the shares of the data. The rest is thinned, if asked,
so that the largest class has RATIO times the rows of the smallest, and split into rows that train
and rows that choose the epoch and the thresholds. Groups, as modules of docstrings, are never torn
apart. Each way trains once a seed and is judged twice, by the highest probability and by
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
from statistics import mean, stdev
from typing import Any

import numpy as np
from datasets import Dataset

import hftune
from hftune.data.load_rows import load_split
from hftune.runs.run import Run
from hftune.tasks.text_classification import TextClassification
from hftune.training.plan.sources import hold_out

RESULTS = Path(__file__).parent / "results"
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"loss": {"name": "cross_entropy"}},
    "class_weights": {"loss": {"name": "cross_entropy", "class_weights": "balanced"}},
    "sampling": {"loss": {"name": "cross_entropy"}, "sampling": "balanced"},
    "oversample": {"loss": {"name": "cross_entropy"}, "sampling": "oversample"},
    "effective_number": {"loss": {"name": "cross_entropy", "class_weights": "effective_number"}},
    "focal": {"loss": {"name": "focal"}},
    "logit_adjustment": {"loss": {"name": "cross_entropy", "logit_adjustment": 1.0}},
}
MAIN_WAYS = ["plain", "class_weights", "sampling"]
TEST_SHARE, TEST_ROWS, VALIDATION_SHARE = 0.35, 700, 0.25
FIGURES = ("f1_macro", "recall_macro", "accuracy", "loss")


def main() -> None:
    """Run what is not there yet, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", default="demo:docstrings")
    parser.add_argument("--name", default="docstrings", help="of the file of results")
    parser.add_argument("--ratio", type=float, help="of the largest class to the smallest")
    parser.add_argument("--rows", type=int, default=800, help="at most, beside those of the test")
    parser.add_argument("--model", default="demo:minilm")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--ways", nargs="+", default=MAIN_WAYS, choices=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if options.data == "demo:docstrings" and options.ratio is None:
        options.ratio = 20.0
    path = RESULTS / f"imbalance_{options.name}.json"
    settings = {name: getattr(options, name) for name in ("ratio", "rows", "model", "epochs")}
    kept = json.loads(path.read_text()) if path.exists() else {"settings": settings, "cells": {}}
    if kept["settings"] != settings:
        parser.error(f"{path} has other settings: {kept['settings']}; give another --name")
    for seed in options.seeds:
        train, test = parts(options.data, options.ratio, options.rows, seed)
        for name in options.ways:
            cell = f"{name}, seed {seed}"
            if cell in kept["cells"]:
                continue
            kept["cells"][cell] = measure(name, train, test, seed, options)
            kept |= {"versions": versions(), "summary": summary(kept["cells"])}
            path.write_text(json.dumps(kept, indent=2) + "\n")
    for line in table(kept["summary"]):
        print(line)


def parts(data: str, ratio: float | None, number: int, seed: int) -> tuple[Dataset, Dataset]:
    """Return rows to train and choose on, and rows to judge on."""
    task = TextClassification()
    rows = load_split(data)
    rows = task.select(rows, task.columns(rows.column_names, {}))
    size = min(TEST_ROWS, round(TEST_SHARE * len(rows)))
    kept, judged = hold_out(rows, task, size, seed)
    pool = rows.select(kept)
    return pool.select(thinned(pool["label"][:], ratio, number, seed)), rows.select(judged)


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
    """Train one way and judge its decisions."""
    way = WAYS[name]
    with tempfile.TemporaryDirectory() as folder:
        recipe = hftune.Recipe(
            task="text-classification",
            model=options.model,
            data={
                "validation_size": VALIDATION_SHARE,
                "max_length": 64,
                "sampling": way.get("sampling"),
            },
            method={"name": "lora", "r": 16, "lora_alpha": 32},
            loss=way["loss"],
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
        if name == "plain":
            seen = {label: count / sum(counts.values()) for label, count in counts.items()}
            prior = {"prior": "uniform", "seen_prior": seen}
            judged["uniform prior"] = judge(run, test, counts, thresholds=None, **prior)
    rows = {"train_classes": counts, "test_rows": len(test), "cpu_s": round(seconds, 1)}
    return {**rows, "judged": judged}


def judge(run: Run, test: Dataset, counts: dict[str, int], **decisions: Any) -> dict[str, float]:
    """Return the figures of one way to decide; the rarest class is that of the training rows."""
    run.metadata.task_options.update(decisions)
    found = hftune.evaluate(run, test)
    rarest = min(counts, key=lambda label: counts[label])
    figures = {name: found[f"eval_{name}"] for name in FIGURES}
    figures["f1_rarest"] = found["eval_per_class"][rarest]["f1"]
    return {name: round(value, 4) for name, value in figures.items()}


def summary(cells: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return way and decision -> figure -> mean over the seeds there are, and macro F1 of each."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for cell, result in cells.items():
        way, _, seed = cell.partition(", seed ")
        for decision, figures in result["judged"].items():
            found.setdefault(f"{way}, {decision}", {})[int(seed)] = figures
    plain = found.get("plain, highest", {})
    lines: dict[str, dict[str, Any]] = {}
    for key, seeds in found.items():
        several = list(seeds.values())
        lines[key] = {name: round(mean(one[name] for one in several), 4) for name in several[0]}
        lines[key]["f1_macro_by_seed"] = {seed: one["f1_macro"] for seed, one in seeds.items()}
        gains = [
            one["f1_macro"] - plain[seed]["f1_macro"]
            for seed, one in seeds.items()
            if seed in plain
        ]
        lines[key]["gain"] = round(mean(gains), 4) if gains else 0.0
        lines[key]["gain_sd"] = round(stdev(gains), 4) if len(gains) > 1 else None
    return lines


def table(lines: dict[str, dict[str, Any]]) -> list[str]:
    """Return the summary as lines of Markdown."""
    head = "| Way, decision | Macro F1 | each seed | gain | accuracy | loss | F1 of the rarest |"
    rows = [head, "|---" * 7 + "|"]
    for key, one in lines.items():
        seeds = " ".join(f"{value:.3f}" for value in one["f1_macro_by_seed"].values())
        figures = " | ".join(f"{one[name]:.3f}" for name in ("accuracy", "loss", "f1_rarest"))
        spread = "" if one["gain_sd"] is None else f" ({one['gain_sd']:.3f})"
        gain = f"{one['gain']:+.3f}{spread}"
        rows.append(f"| {key} | {one['f1_macro']:.3f} | {seeds} | {gain} | {figures} |")
    return rows


def versions() -> dict[str, str]:
    """Return what decides the figures beside the seeds."""
    packages = ("torch", "transformers", "peft", "scikit-learn", "numpy")
    return {name: version(name) for name in packages} | {"machine": platform.machine()}


if __name__ == "__main__":
    main()
