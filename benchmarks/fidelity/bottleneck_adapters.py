# SPDX-License-Identifier: Apache-2.0
r"""Does a Pfeiffer adapter come close to full fine-tuning? AdapterFusion's claim, on small data.

    python benchmarks/fidelity/bottleneck_adapters.py \
        --data banking77=train.csv,test.csv --data sections=sections.csv --seeds 0 1 2

``demo:docstrings`` is always one of the sets. Files hold ``text`` and ``label``; without a test
file a fifth of the rows is held out, whole modules of the docstrings. A tenth of the rest (a third
of the docstrings' modules) decides when to stop: a cell trains until ``--patience`` epochs in a row
did not improve its macro F1, and its best checkpoint is judged once on the test rows. Each method
runs at each of its rates; the rate is chosen on the rows that decide, not on the test rows.

Kept if the mean gap to full fine-tuning is at most 1.5 points at under 4 % of the parameters.
Results go to benchmarks/results/fidelity_bottleneck.json after every cell; what is there already is
not run again, so the same command goes on after an interruption. (The file is not named
bottleneck.py, since pandas looks for a package of that name beside a script.)
"""

import argparse
import json
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd
from datasets import Dataset
from sklearn.model_selection import GroupShuffleSplit, train_test_split
from transformers import EarlyStoppingCallback

import hftune
from hftune.data.docstrings import docstring_rows

RESULTS = Path(__file__).parents[1] / "results" / "fidelity_bottleneck.json"
PACKAGES = ("hftune", "torch", "transformers", "peft", "datasets", "scikit-learn")
DEMO = "demo:docstrings"
LARGEST_GAP, LARGEST_SHARE = 0.015, 0.04
METHODS: dict[str, Any] = {
    "full": "full",
    "bottleneck": {"name": "bottleneck", "placement": "pfeiffer", "r": 48},
}
RATES = {"full": [5e-5, 1e-4, 2e-4], "bottleneck": [5e-4, 1e-3, 2e-3]}

Parts = dict[str, pd.DataFrame]


def main() -> None:
    """Run the cells that are missing and say what they show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", default=[], metavar="NAME=TRAIN[,TEST]")
    parser.add_argument("--model", default="demo:minilm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--rates", type=float, nargs="+", help="in place of each method's own")
    parser.add_argument("--rows", type=int, help="train on this many at most, drawn by seed")
    parser.add_argument("--max-epochs", type=int, default=40)
    parser.add_argument("--patience", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    sets: dict[str, list[Path]] = {DEMO: [], **dict(_named_files(text) for text in options.data)}
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    cells = results.setdefault("cells", {})
    for name, files in sets.items():
        for seed in options.seeds:
            parts = split(read(files), seed, options.rows)
            for method in options.methods:
                for rate in options.rates or RATES[method]:
                    key = f"{options.model} {name} {options.rows} {method} {rate:g} {seed}"
                    if key not in cells:
                        told = {"data": name, "method": method, "rate": rate, "seed": seed}
                        cells[key] = told | cell(parts, method, rate, seed, options)
                        results["summary"] = summary(cells)
                        results["settings"] = settings(options)
                        options.results.write_text(json.dumps(results, indent=2) + "\n")
                    print(key, cells[key], flush=True)
    print(json.dumps(summary(cells), indent=2))


def cell(parts: Parts, method: str, rate: float, seed: int, options: Any) -> dict[str, Any]:
    """Train one model to its best and judge it on the test rows."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        recipe = hftune.Recipe(
            task="text-classification",
            model=options.model,
            data={"max_length": 64},
            method=METHODS[method],
            training={
                "learning_rate": rate,
                "num_train_epochs": options.max_epochs,
                "lr_scheduler_type": "constant_with_warmup",  # the end is not known beforehand
                "warmup_steps": 50,
                "per_device_train_batch_size": 16,
                "seed": seed,
                "eval_strategy": "epoch",
                "save_strategy": "epoch",
                "load_best_model_at_end": True,
                "metric_for_best_model": "f1_macro",
                "output_dir": f"{folder}/run",
            },
        )
        run = hftune.train(
            recipe,
            train_dataset=_dataset(parts["train"]),
            eval_dataset=_dataset(parts["validation"]),
            callbacks=[EarlyStoppingCallback(early_stopping_patience=options.patience)],
        )
        judged = hftune.evaluate(run, _dataset(parts["test"]))
        log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
        figures = run.metrics
    validation = [line["eval_f1_macro"] for line in log if "eval_f1_macro" in line]
    return {
        "test_f1_macro": round(judged["eval_f1_macro"], 4),
        "test_accuracy": round(judged["eval_accuracy"], 4),
        "validation_f1_macro": round(max(validation), 4),
        "epochs": len(validation),
        "stopped_by_itself": len(validation) < options.max_epochs,
        "trainable_parameters": figures["trainable_parameters"],
        "parameters": figures["parameters"],
        "rows": {name: len(part) for name, part in parts.items()},
        "seconds": round(time.perf_counter() - start),
    }


def summary(cells: dict[str, Any]) -> dict[str, Any]:
    """Return, for each set, both methods' means over seeds at their best rates, and the gap."""
    rows = pd.DataFrame(cells.values())
    told: dict[str, Any] = {}
    for name, of_set in rows.groupby("data"):
        told[str(name)] = {}
        for method, of_method in of_set.groupby("method"):
            best = of_method.groupby("rate")["validation_f1_macro"].mean().idxmax()
            chosen = of_method[of_method["rate"] == best]
            told[str(name)][str(method)] = {
                "rate": best,
                "seeds": len(chosen),
                "test_f1_macro": round(mean(chosen["test_f1_macro"]), 4),
            }
        if len(told[str(name)]) == len(METHODS):
            adapters = of_set[of_set["method"] == "bottleneck"]
            share = float((adapters["trainable_parameters"] / adapters["parameters"]).max())
            full, ours = (told[str(name)][method]["test_f1_macro"] for method in METHODS)
            told[str(name)] |= {
                "gap": round(full - ours, 4),
                "trained_share": round(share, 4),
                "kept": bool(full - ours <= LARGEST_GAP and share < LARGEST_SHARE),
            }
    return told


def settings(options: Any) -> dict[str, Any]:
    """Return what another machine needs to know."""
    return {
        "max_epochs": options.max_epochs,
        "patience": options.patience,
        "methods": METHODS,
        "versions": {name: version(name) for name in PACKAGES} | {"machine": platform.machine()},
    }


def read(files: list[Path]) -> Parts:
    """Return the rows of one set; ``test`` is among them where a file holds it."""
    if not files:
        rows = pd.DataFrame(docstring_rows())
        return {"train": rows.rename(columns={"summary": "text", "package": "label"})}
    parts = {}
    for part, file in zip(("train", "test"), files, strict=False):
        rows = pd.read_csv(file) if file.suffix == ".csv" else pd.read_json(file, lines=True)
        parts[part] = rows[["text", "label"]].astype(str)
    return parts


def split(parts: Parts, seed: int, most: int | None) -> Parts:
    """Return train, validation and test rows; docstrings of one module stay together."""
    train = parts["train"]
    grouped = "module" in train
    if "test" in parts:
        test = parts["test"]
    else:
        train, test = _cut(train, 0.2, seed, grouped)
    train, validation = _cut(train, 0.33 if grouped else 0.1, seed + 1000, grouped)
    if most is not None and len(train) > most:
        train = train.sample(most, random_state=seed)
    return {"train": train, "validation": validation, "test": test}


def _cut(
    rows: pd.DataFrame, share: float, seed: int, grouped: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    if not grouped:
        first, second = train_test_split(
            rows, test_size=share, random_state=seed, stratify=rows["label"]
        )
        return first, second
    cut = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
    first, second = next(cut.split(rows, groups=rows["module"]))
    return rows.iloc[first], rows.iloc[second]


def _dataset(rows: pd.DataFrame) -> Dataset:
    return Dataset.from_pandas(rows[["text", "label"]], preserve_index=False)


def _named_files(text: str) -> tuple[str, list[Path]]:
    name, _, files = text.partition("=")
    if not files:
        raise SystemExit(f"--data {text}: NAME=TRAIN[,TEST] is wanted")
    return name, [Path(file) for file in files.split(",")]


if __name__ == "__main__":
    main()
