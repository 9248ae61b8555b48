# SPDX-License-Identifier: Apache-2.0
"""What does a training cost whose frozen layers run once? Against Transformers' Trainer.

    python benchmarks/trunk.py                       # every work, three rounds
    python benchmarks/trunk.py --works head_only_3 --rounds 1
    python benchmarks/trunk.py --threads 2 --rounds 1      # by the clock on the wall

Both sides train the same part of MiniLM on the same rows of ``demo:docstrings`` in the same float32
and batch size, for the same epochs, each in a process of its own with as many threads; ``trainer``
is ``transformers.Trainer`` with its padding collator. The model has no dropout, so the frozen
layers answer alike on both sides. Told are seconds of the whole training, of the CPU with one
thread and on the wall with more, of hftune with the cache that is built first, and the last loss
that is logged, which must be the same. The machine may be shared: read the ratios. A round that is
kept is not run again.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from fidelity.cells import RESULTS, Cell, Cells, in_a_process

ROWS, BATCH, MAX_LENGTH = 1500, 32, 256
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
LORA = {"name": "lora", "r": 8, "lora_alpha": 16, "lora_dropout": 0.0,
        "target_modules": ["query", "key", "value", "dense"],
        "layers_to_transform": [4, 5]}  # fmt: skip
#: Work -> method, epochs, and how many times as fast as the Trainer it has to be.
WORKS: dict[str, tuple[Any, int, float]] = {
    "head_only_3": ("head_only", 3, 6.0),
    "head_only_10": ("head_only", 10, 18.0),
    "lora_upper_third_3": (LORA, 3, 3.5),
}
SIDES = ("trainer", "hftune")


def main() -> None:
    """Measure the rounds that are missing, and say what they show; or one, for the parent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS / "trunk.json")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        work, side, threads = options.one
        torch.set_num_threads(int(threads))
        print(json.dumps(measure(work, side)))
        return
    settings = {"rows": ROWS, "batch": BATCH, "max_length": MAX_LENGTH}
    threads = str(options.threads)
    cells = Cells(options.results, settings)
    for number in range(options.rounds):
        for work in options.works:
            for side in SIDES:
                cells.measure(
                    lambda w=work, s=side: in_a_process(
                        __file__, w, s, threads, ours=s == "hftune"
                    ),
                    threads=options.threads, work=work, side=side, round=number,
                )  # fmt: skip
    cells.tell(summary(cells))


def measure(work: str, side: str) -> Cell:
    """Train, and return the seconds it took and the last loss that was logged."""
    from hftune.training.build import build_trainer
    from hftune.training.frozen_layer_cache import cached_frozen_layers
    from hftune.training.load_model import LoadedModel, load_model
    from hftune.training.plan.prepare import prepare
    from hftune.training.speedups import without_padding

    with tempfile.TemporaryDirectory(prefix="trunk-") as folder:
        plan = prepare(recipe(work, folder))
        model = load_model(plan).model
        os.environ["HFTUNE_CACHE"] = folder  # nothing is kept of an earlier round
        if side == "hftune":
            trainer: Any = build_trainer(plan, LoadedModel(model))
            begun = time.process_time(), time.perf_counter()
            with without_padding(plan, trainer), cached_frozen_layers(plan, trainer):
                trainer.train()
        else:
            trainer = plain(plan, model)
            begun = time.process_time(), time.perf_counter()
            trainer.train()
        spent, passed = time.process_time() - begun[0], time.perf_counter() - begun[1]
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    seconds = {"cpu_seconds": round(spent, 2), "seconds": round(passed, 2)}
    return seconds | {"loss": round(losses[-1], 5)}


def plain(plan: Any, model: Any) -> Any:
    """Return Transformers' Trainer for the same rows."""
    import transformers

    kept = ("input_ids", "attention_mask", "labels")
    rows = plan.splits.train.dataset
    return transformers.Trainer(
        model=model,
        args=plan.settings.arguments,
        train_dataset=rows.remove_columns([c for c in rows.column_names if c not in kept]),
        data_collator=plan.objective.task.collator(plan.pretrained.processor, model),
    )


def recipe(work: str, folder: str) -> Any:
    """Return what both sides train."""
    import hftune

    method, epochs, _ = WORKS[work]
    return hftune.Recipe(
        task="text-classification",
        model={"path": "demo:minilm", "config": dict.fromkeys(DROPOUT, 0.0)},
        data={
            "path": "demo:docstrings",
            "validation_size": 0,
            "max_length": MAX_LENGTH,
            "max_train_samples": ROWS,
        },
        method=method,
        training={
            "output_dir": f"{folder}/run",
            "num_train_epochs": epochs,
            "per_device_train_batch_size": BATCH,
            "per_device_eval_batch_size": BATCH,
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_steps": 20,
            "learning_rate": 1e-3,
        },
    )


def summary(cells: Cells) -> dict[str, Any]:
    """Return medians of each side, and how many times as fast ours is."""
    told: dict[str, Any] = {}
    for work, threads in dict.fromkeys((cell["work"], cell["threads"]) for cell in cells.all()):
        took = "cpu_seconds" if threads == 1 else "seconds"
        of = {side: cells.all(work=work, threads=threads, side=side) for side in SIDES}
        here = told[f"{work}, threads: {threads}"] = {
            side: {"rounds": len(kept), took: median(cell[took] for cell in kept),
                   "loss": kept[0]["loss"]}
            for side, kept in of.items() if kept
        }  # fmt: skip
        if all(of.values()):
            theirs, ours = (here[side][took] for side in SIDES)
            here["times as fast"] = round(theirs / ours, 2)
        here["target"] = WORKS[work][2]
    return told


if __name__ == "__main__":
    main()
