# SPDX-License-Identifier: Apache-2.0
"""How good is every method on one classification task, and do two of them keep their promise?

    python benchmarks/fidelity/classification.py \
        --data sections=sections.csv --data banking77=train.csv,test.csv

``demo:docstrings`` is always one of the sets, and the only one for methods that nothing is
promised of. Files hold ``text`` and ``label``; without a test file a fifth of the rows is held out,
whole modules of the docstrings. All methods see the same rows, the same number of epochs (all
phases of a method counted) and a rate that falls to zero; each runs at two rates with the first
seed, the better of which on validation rows is taken for the others. Test rows judge once.

Promised: diff pruning changes half a percent of the weights at most, comes within 1.5 points of
full fine-tuning and 3 above BitFit; Pfeiffer adapters come within 1.5 points at under 4 % of the
parameters. A picture of the gates lies beside the results.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
from cells import RESULTS, Cell, Cells, spread
from datasets import Dataset
from matplotlib.figure import Figure
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

import hftune
from hftune.data.docstrings import docstring_rows

MODEL = "demo:minilm"
DEMO = "demo:docstrings"
SETTINGS: dict[str, Any] = {"model": MODEL, "train_rows": 800, "validation_rows": 300,
            "test_rows": 1000, "epochs": 4, "batch_size": 16, "max_length": 32}  # fmt: skip
LOW_RANK = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
#: Section of the recipe, and the rates to choose among.
METHODS: dict[str, tuple[Any, list[float]]] = {
    "full": ({"name": "full"}, [1e-4, 3e-4, 1e-3]),
    "bitfit": ({"name": "bitfit"}, [3e-3, 1e-2]),
    "bottleneck, Pfeiffer": (
        {"name": "bottleneck", "placement": "pfeiffer", "r": 48, "dropout": 0.0}, [1e-3, 3e-3]),
    "diff_pruning": ({"name": "diff_pruning"}, [3e-4, 1e-3]),
    "lora": ({"name": "lora", **LOW_RANK}, [1e-3, 3e-3]),
    "lora, DoRA": ({"name": "lora", **LOW_RANK, "use_dora": True}, [1e-3, 3e-3]),
    "qlora": ({"name": "qlora", **LOW_RANK, "lora_dropout": 0.0}, [1e-3, 3e-3]),
    "relora": ({"name": "relora", **LOW_RANK}, [1e-3, 3e-3]),
    "adalora": ({"name": "adalora", "init_r": 12, "target_r": 8, "lora_alpha": 16,
                 "target_modules": "all-linear"}, [3e-3, 1e-2]),
    "bottleneck, Houlsby": (
        {"name": "bottleneck", "placement": "houlsby", "r": 24, "dropout": 0.0}, [1e-3, 3e-3]),
    "bottleneck, parallel": (
        {"name": "bottleneck", "placement": "parallel", "r": 48, "dropout": 0.0}, [1e-3, 3e-3]),
    "freeze, gradual unfreezing": ({"name": "freeze", "unfreeze_every": 0.1}, [1e-4, 3e-4]),
    "freeze, head first": ({"name": "freeze", "head_only_steps": 0.3}, [1e-4, 3e-4]),
    "head_only": ({"name": "head_only"}, [3e-3, 1e-2]),
    "prune": ({"name": "prune", "sparsity": 0.5, "schedule": "cubic", "end_step": 0.5},
              [1e-4, 3e-4]),
    "probe": ({"name": "probe", "pooling": "mean", "balance": "class_weight",
               "param_grid": {"C": [1e-4, 1e-3, 1e-2, 1e-1]}}, [0.0]),
    "ia3": ({"name": "ia3"}, [1e-2, 3e-2]),
    "vera": ({"name": "vera"}, [1e-2, 3e-2]),
    "loha": ({"name": "loha", "r": 8, "alpha": 16}, [1e-3, 3e-3]),
    "lokr": ({"name": "lokr", "r": 8, "alpha": 16}, [1e-3, 3e-3]),
    "oft": ({"name": "oft"}, [1e-3, 3e-3]),
    "ln_tuning": ({"name": "ln_tuning"}, [3e-3, 1e-2]),
    "prefix_tuning": ({"name": "prefix_tuning", "num_virtual_tokens": 10}, [1e-2, 3e-2]),
    "p_tuning": ({"name": "p_tuning", "num_virtual_tokens": 10, "encoder_hidden_size": 128},
                 [3e-3, 1e-2]),
    "prompt_tuning": ({"name": "prompt_tuning", "num_virtual_tokens": 10}, [1e-2, 3e-2]),
}  # fmt: skip
#: Of these something is promised, on every set.
PROMISED = ("full", "bitfit", "bottleneck, Pfeiffer", "diff_pruning")
BELOW_FULL, ABOVE_BITFIT, CHANGED, TRAINED = 1.5, 3.0, 0.005, 0.04
JUDGED = "validation_accuracy"

Parts = dict[str, pd.DataFrame]


def main() -> None:
    """Measure the cells that are missing, and say what they show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", default=[], metavar="NAME=TRAIN[,TEST]")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS / "fidelity_classification.json")
    options = parser.parse_args()
    cells = Cells(options.results, SETTINGS, packages=["scikit-learn"])
    for name, files in {DEMO: [], **dict(map(named_files, options.data))}.items():
        rows = read(files)
        for method in options.methods:
            if name == DEMO or method in PROMISED:
                cells.over_seeds(
                    lambda rate, seed, rows=rows, method=method: run_cell(rows, method, rate, seed),
                    METHODS[method][1],
                    options.seeds,
                    JUDGED,
                    data=name,
                    method=method,
                )
    draw_gates(cells, options.results.with_name("fidelity_diff_pruning_gates.png"))
    cells.tell({"promises": promises(cells), "table": table(cells)})


def run_cell(rows: Parts, method: str, rate: float, seed: int) -> Cell:
    """Train one model and judge it on the test rows."""
    section = METHODS[method][0]
    fitted = section["name"] == "probe"
    parts = split(rows, seed)
    training = {
        "learning_rate": rate,
        "num_train_epochs": SETTINGS["epochs"],
        "warmup_steps": 0.05,
        "per_device_train_batch_size": SETTINGS["batch_size"],
        "train_sampling_strategy": "group_by_length",
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 10,
    }
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fidelity-") as folder:
        place = {"seed": seed, "output_dir": f"{folder}/run"}
        recipe = hftune.Recipe(
            task="text-classification",
            model=MODEL,
            data={"max_length": SETTINGS["max_length"]},
            method=section,
            training=place if fitted else training | place,
        )
        run = hftune.train(recipe, train_dataset=parts["train"], eval_dataset=parts["validation"])
        figures = {"seconds": round(time.perf_counter() - start)}
        judged = hftune.evaluate(run, parts["test"])
        log = run.path / "log.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        saved = sum(
            file.stat().st_size for file in run.model_path.glob("*.s*")
        )  # safetensors, skops
        figures |= {
            "test_accuracy": round(judged["eval_accuracy"], 4),
            "test_f1_macro": round(judged["eval_f1_macro"], 4),
            JUDGED: round(run.metrics["eval_accuracy"], 4),
            "saved_bytes": saved,
        }
        told = ("trainable_parameters", "parameters")
        figures |= {name: run.metrics[name] for name in told if name in run.metrics}
    if method == "diff_pruning":
        figures |= changed_weights(run.model)
        figures["gates"] = [(x["step"], x["open_share"]) for x in lines if "open_share" in x]
    return figures


def changed_weights(model: Any) -> dict[str, int]:
    """Count the weights that merging changes, and all that could have been."""
    tuner = model.base_model
    changed = sum(int(d.values.ne(0).sum()) for d in tuner.differences())
    return {"changed_weights": changed, "of_weights": tuner.num_weights()}


def promises(cells: Cells) -> dict[str, Any]:
    """Return, for each set, how far the promised methods are from full fine-tuning and BitFit."""
    told: dict[str, Any] = {}
    for name in dict.fromkeys(cell["data"] for cell in cells.all()):
        here = {m: cells.chosen(JUDGED, data=name, method=m)
                for m in PROMISED if cells.all(data=name, method=m)}  # fmt: skip
        accuracy = {m: 100 * spread([c["test_accuracy"] for c in cs])["mean"]
                    for m, cs in here.items()}  # fmt: skip
        told[name] = {m: {"accuracy": round(accuracy[m], 2), "seeds": len(here[m])} for m in here}
        if "diff_pruning" in here:
            ours = here["diff_pruning"]
            changed = max(cell["changed_weights"] / cell["of_weights"] for cell in ours)
            below = accuracy["full"] - accuracy["diff_pruning"]
            above = accuracy["diff_pruning"] - accuracy["bitfit"]
            told[name]["diff_pruning"] |= {
                "changed_share": changed,
                "points_below_full": round(below, 2),
                "points_above_bitfit": round(above, 2),
                "kept": changed <= CHANGED and below <= BELOW_FULL and above >= ABOVE_BITFIT,
            }
        if "bottleneck, Pfeiffer" in here:
            ours = here["bottleneck, Pfeiffer"]
            trained = max(cell["trainable_parameters"] / cell["parameters"] for cell in ours)
            below = accuracy["full"] - accuracy["bottleneck, Pfeiffer"]
            told[name]["bottleneck, Pfeiffer"] |= {
                "trained_share": round(trained, 4),
                "points_below_full": round(below, 2),
                "kept": trained < TRAINED and below <= BELOW_FULL,
            }
    return told


def table(cells: Cells) -> dict[str, Any]:
    """Return quality and size of every method on the docstrings.

    A seed also draws the rows, so methods are compared on the seeds that both have.
    """
    told = {}
    full = {cell["seed"]: cell["test_f1_macro"]
            for cell in cells.chosen(JUDGED, data=DEMO, method="full")}  # fmt: skip
    for method in METHODS:
        if cells.all(data=DEMO, method=method):
            chosen = cells.chosen(JUDGED, data=DEMO, method=method)
            told[method] = {
                "accuracy": spread([cell["test_accuracy"] for cell in chosen]),
                "f1_macro": spread([cell["test_f1_macro"] for cell in chosen]),
                "f1_macro_above_full": spread(
                    [c["test_f1_macro"] - full[c["seed"]] for c in chosen if c["seed"] in full]
                ),
                "seeds": len(chosen),
                "rate": chosen[0]["rate"],
                "trainable_parameters": chosen[0].get("trainable_parameters"),
                "saved_bytes": chosen[0]["saved_bytes"],
            }
    return told


def draw_gates(cells: Cells, file: Path) -> None:
    """Draw the expected share of open gates over the steps of each run."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for cell in cells.all(method="diff_pruning"):
        label = f"{cell['data']}, {cell['rate']:g}" if cell["seed"] == 0 else None
        axes.plot(*zip(*cell["gates"], strict=True), label=label)
    axes.axhline(CHANGED, color="grey", linestyle=":", label="target")
    axes.set_yscale("log")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("expected share of open gates")
    axes.legend(frameon=False, fontsize="x-small")
    figure.savefig(file, dpi=150)


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


def split(parts: Parts, seed: int) -> dict[str, Dataset]:
    """Return train, validation and test rows; docstrings of one module stay together."""
    train = parts["train"]
    grouped = "module" in train
    if "test" in parts:
        test = parts["test"]
    else:
        train, test = _cut(train, 5, seed, grouped)
    train, validation = _cut(train, 3 if grouped else 10, seed + 1000, grouped)
    return {
        name: Dataset.from_pandas(
            rows[["text", "label"]].sample(
                min(SETTINGS[f"{name}_rows"], len(rows)), random_state=seed
            ),
            preserve_index=False,
        )
        for name, rows in {"train": train, "validation": validation, "test": test}.items()
    }


def _cut(
    rows: pd.DataFrame, folds: int, seed: int, grouped: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One fold goes to the second part; every label is in both alike, as far as groups allow."""
    kind = StratifiedGroupKFold if grouped else StratifiedKFold
    cut = kind(n_splits=folds, shuffle=True, random_state=seed)
    first, second = next(cut.split(rows, rows["label"], rows["module"] if grouped else None))
    return rows.iloc[first], rows.iloc[second]


def named_files(text: str) -> tuple[str, list[Path]]:
    """Split ``NAME=TRAIN[,TEST]``."""
    name, _, files = text.partition("=")
    if not files:
        raise SystemExit(f"--data {text}: NAME=TRAIN[,TEST] is wanted")
    return name, [Path(file) for file in files.split(",")]


if __name__ == "__main__":
    main()
