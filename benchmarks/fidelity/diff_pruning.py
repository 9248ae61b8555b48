# SPDX-License-Identifier: Apache-2.0
"""Does diff pruning do what its paper says? Against full fine-tuning and BitFit at equal epochs.

    python benchmarks/fidelity/diff_pruning.py first.csv second.csv --seeds 0 1 2

MiniLM on each classification file (columns text and label; a validation part of a third is split
off by seed) and on ``demo:docstrings``. A cell is a method on a data set with a seed; a finished
cell is not run again, so that the script can be stopped at any time. Targets: at most half a
percent of the weights differ, the accuracy is within 1.5 points of full fine-tuning and at least 3
above BitFit (biases and head), and the gates reach the target (a picture beside the results).
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import nn

import hftune
from hftune.core.files import atomic_write_json
from hftune.training.build import build_model
from hftune.training.prepare import prepare

RESULTS = Path(__file__).parents[1] / "results" / "diff_pruning.json"
DEMO = "demo:docstrings"
MODEL = "demo:minilm"
PACKAGES = ("torch", "transformers", "peft", "hftune")
#: Method -> its section of the recipe and its rate. BitFit comes as a model of one's own.
METHODS: dict[str, tuple[Any, float]] = {
    "full": ("full", 1e-4),
    "bitfit": ("full", 3e-3),
    "diff_pruning": ("diff_pruning", 3e-4),
}
POINTS_BELOW_FULL, POINTS_ABOVE_BITFIT, SHARE = 1.5, 3.0, 0.005


def main() -> None:
    """Run the cells that are missing, and judge when all are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", help="classification files with text and label")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rows", type=int, default=800, help="train on so many, drawn by seed")
    parser.add_argument("--epochs", type=float, default=6, help="of every method, all phases")
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    settings = {"rows": options.rows, "epochs": options.epochs, "max_length": options.max_length}
    results.setdefault("settings", settings)
    if results["settings"] != settings:
        parser.error(f"{options.results} holds cells of other settings: {results['settings']}")
    cells = results.setdefault("cells", {})
    for source in [*options.data, DEMO]:
        for seed in options.seeds:
            for method in options.methods:
                key = f"{Path(source).stem} {method} {seed}"
                if key not in cells:
                    cells[key] = run_cell(source, method, seed, settings)
                    print(key, {k: v for k, v in cells[key].items() if k != "gates"})
                    results["versions"] = {name: version(name) for name in PACKAGES}
                    results["machine"] = f"{platform.machine()}, {platform.system()}"
                    options.results.parent.mkdir(parents=True, exist_ok=True)
                    atomic_write_json(options.results, results)
    draw_gates(cells, options.results.with_suffix(".png"))
    for line in verdict(cells):
        print(line)


def run_cell(source: str, method: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train once and return accuracy, macro F1, weights that differ, gates over steps, seconds."""
    section, rate = METHODS[method]
    with tempfile.TemporaryDirectory(prefix="fidelity-") as place:
        recipe = hftune.Recipe(
            task="text-classification",
            model=MODEL,
            data={
                "path": source,
                "validation_size": 0.33,
                "max_train_samples": settings["rows"],
                "max_length": settings["max_length"],
            },
            method=section,
            training={
                "output_dir": str(Path(place, "run")),
                "seed": seed,
                "learning_rate": rate,
                "num_train_epochs": settings["epochs"],
                "per_device_train_batch_size": 16,
                "eval_strategy": "no",
                "save_strategy": "no",
                "train_sampling_strategy": "group_by_length",
            },
        )
        start = time.perf_counter()
        run = hftune.train(recipe, model=bitfit_model(recipe) if method == "bitfit" else None)
        seconds = round(time.perf_counter() - start)
        log = (run.path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    gates = [(line["step"], line["open_share"]) for line in map(json.loads, log)
             if "open_share" in line]  # fmt: skip
    return {
        "accuracy": round(run.metrics["eval_accuracy"], 4),
        "f1_macro": round(run.metrics["eval_f1_macro"], 4),
        "trainable_parameters": run.metrics["trainable_parameters"],
        "changed": changed_weights(run.model) if method == "diff_pruning" else None,
        "gates": gates,
        "seconds": seconds,
    }


def bitfit_model(recipe: hftune.Recipe) -> nn.Module:
    """Return the model with biases, head and untrained pooler training alone."""
    plan = prepare(recipe)
    model: Any = build_model(plan)
    for name, parameter in model.base_model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or name.startswith("pooler"))
    return model


def changed_weights(model: Any) -> dict[str, int]:
    """Count the weights that merging changes, and all that could have been."""
    tuner = model.base_model
    total = tuner.num_weights()
    return {"non_zero": sum(int(d.values.ne(0).sum()) for d in tuner.differences()), "of": total}


def draw_gates(cells: dict[str, Any], file: Path) -> None:
    """Draw the expected share of open gates over the steps of each run."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, cell in cells.items():
        if cell["gates"]:
            axes.plot(*zip(*cell["gates"], strict=True), label=name)
    axes.axhline(SHARE, color="grey", linestyle=":", label="target")
    axes.set_yscale("log")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("expected share of open gates")
    axes.legend(frameon=False, fontsize="x-small")
    figure.savefig(file, dpi=150)


def verdict(cells: dict[str, Any]) -> list[str]:
    """Compare the means over the seeds of each data set that has all three methods."""
    means: dict[str, dict[str, list[float]]] = {}
    for key, cell in cells.items():
        source, method, _ = key.rsplit(" ", 2)
        means.setdefault(source, {}).setdefault(method, []).append(100 * cell["accuracy"])
    lines = []
    for source, methods in means.items():
        if methods.keys() != METHODS.keys():
            continue
        full, bitfit, own = (statistics.mean(methods[name]) for name in METHODS)
        own_cells = [cell for key, cell in cells.items() if key.startswith(f"{source} diff")]
        shares = [cell["changed"]["non_zero"] / cell["changed"]["of"] for cell in own_cells]
        sparse = max(shares) <= SHARE
        holds = sparse and own >= full - POINTS_BELOW_FULL and own >= bitfit + POINTS_ABOVE_BITFIT
        lines.append(
            f"{source}: full {full:.1f}, diff_pruning {own:.1f}, BitFit {bitfit:.1f}; at most "
            f"{max(shares):.4%} of the weights differ: {'holds' if holds else 'does not hold'}"
        )
    return lines


if __name__ == "__main__":
    main()
