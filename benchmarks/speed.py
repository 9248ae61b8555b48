# SPDX-License-Identifier: Apache-2.0
"""How fast is a training step, and how much memory does it take? Against Transformers' Trainer.

    python benchmarks/speed.py                                    # every work, five rounds
    python benchmarks/speed.py --works classification --rounds 3

Both sides train the same model on the same rows of ``demo:docstrings`` in the same float32, batch
size and number of steps, each in a process of its own with one thread; ``trainer`` is
``transformers.Trainer`` with its padding collator, ``by_length`` the same with
``train_sampling_strategy: group_by_length``. Rounds alternate between the sides. Told are real
tokens (no padding) per CPU second of the optimizer steps after WARM, and the most memory that the
process held above what it held with the model loaded. The machine may be shared: read the ratios.
A round that is kept is not run again.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from fidelity.cells import RESULTS, Cell, Cells, in_a_process
from torch import Tensor
from transformers import TrainerCallback

WARM = 3
BATCH = {"classification": 16, "evaluation": 16, "sft": 8}
STEPS = {"classification": 50, "evaluation": 0, "sft": 8}
MAX_LENGTH = 256
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
SIDES = {
    "classification": ("trainer", "by_length", "hftune"),
    "evaluation": ("trainer", "hftune"),
    "sft": ("trainer", "hftune"),
}
EVALUATED = 1500
#: Of the first side: tokens a second at least, memory at most.
TARGETS = {"classification": (2.3, 0.5), "evaluation": (1.9, None), "sft": (2.1, 0.52)}


def main() -> None:
    """Measure the rounds that are missing, and say what they show; or one, for the parent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS / "speed.json")
    parser.add_argument("--one", nargs=2, metavar=("WORK", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    cells = Cells(options.results, {"batch": BATCH, "steps": STEPS, "max_length": MAX_LENGTH,
                                    "evaluated": EVALUATED, "threads": 1})  # fmt: skip
    for number in range(options.rounds):
        for work in options.works:
            for side in SIDES[work]:
                cells.measure(
                    lambda w=work, s=side: in_a_process(__file__, w, s),
                    work=work,
                    side=side,
                    round=number,
                )
    cells.tell(summary(cells))


def measure(work: str, side: str) -> Cell:
    """Train, or evaluate, and return tokens a CPU second and megabytes above the loaded model."""
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory(prefix="speed-") as folder,
        made(work, side, folder) as trainer,
    ):
        clock = Clock()
        trainer.add_callback(clock)
        begun = memory()
        if work == "evaluation":
            spent = time.process_time()
            trainer.predict(trainer.eval_dataset)
            spent = time.process_time() - spent
            tokens = sum(map(len, trainer.eval_dataset["input_ids"]))
        else:
            trainer.data_collator = clock.counting(trainer.data_collator)
            trainer.train()
            spent, tokens = clock.spent, clock.tokens
    return {
        "tokens_per_cpu_second": round(tokens / spent, 1),
        "megabytes_above_model": round((memory() - begun) / 2**20),
    }


@contextmanager
def made(work: str, side: str, folder: str) -> Iterator[Any]:
    """Yield a Trainer of either side, the model loaded."""
    from hftune.training.build import build_model, build_trainer, without_padding
    from hftune.training.prepare import prepare

    plan = prepare(recipe(work, side, folder))
    model = build_model(plan)
    if side == "hftune":
        trainer = build_trainer(plan, model)
        with without_padding(plan, trainer):
            yield trainer
        return
    import transformers

    assert plan.validation is not None
    kept = ("input_ids", "attention_mask", "labels")
    rows = {name: part.rows.remove_columns([c for c in part.rows.column_names if c not in kept])
            for name, part in (("train", plan.train), ("validation", plan.validation))}  # fmt: skip
    plan.arguments.prediction_loss_only = False
    yield transformers.Trainer(
        model=model,
        args=plan.arguments,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=plan.task.collator(plan.tokenizer, model),
    )


def recipe(work: str, side: str, folder: str) -> Any:
    """Return what both sides train."""
    import hftune

    return hftune.Recipe(
        task="text-generation" if work == "sft" else "text-classification",
        model="demo:smollm2" if work == "sft" else "demo:minilm",
        data={
            "path": "demo:docstrings",
            "validation_size": EVALUATED,
            "max_length": MAX_LENGTH,
            "max_train_samples": 4000,
        },
        method={"name": "lora", **LORA} if work == "sft" else "full",
        training={
            "output_dir": f"{folder}/run",
            "max_steps": max(WARM + STEPS[work], 1),
            "per_device_train_batch_size": BATCH[work],
            "per_device_eval_batch_size": BATCH[work],
            "train_sampling_strategy": "group_by_length" if side == "by_length" else "random",
            "eval_strategy": "no",
            "save_strategy": "no",
            "learning_rate": 1e-4,
        },
    )


class Clock(TrainerCallback):
    """Counts CPU seconds and real tokens of the steps after WARM."""

    def __init__(self) -> None:
        self.begun = self.spent = 0.0
        self.batches: list[int] = []

    @property
    def tokens(self) -> int:
        """Real tokens of the timed steps."""
        return sum(self.batches[WARM : WARM + self.steps])

    def counting(self, collate: Any) -> Any:
        """Return a collator that notes the real tokens of each batch."""

        def noted(rows: Any) -> Any:
            batch = collate(rows)
            mask: Tensor = batch["attention_mask"]
            self.batches.append(int(mask.sum()))
            return batch

        return noted

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin after WARM, and note each step."""
        if state.global_step == WARM:
            self.begun = time.process_time()
        self.spent = time.process_time() - self.begun
        self.steps = state.global_step - WARM


def memory() -> int:
    """Return the most memory that this process held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def summary(cells: Cells) -> dict[str, Any]:
    """Return medians of each side, and ours against the others'."""
    told: dict[str, Any] = {}
    for work in dict.fromkeys(cell["work"] for cell in cells.all()):
        of = {side: cells.all(work=work, side=side) for side in SIDES[work]}
        told[work] = {
            side: {"rounds": len(kept)}
            | {key: median(cell[key] for cell in kept)
               for key in ("tokens_per_cpu_second", "megabytes_above_model")}
            for side, kept in of.items() if kept
        }  # fmt: skip
        ours = told[work].get("hftune", {})
        for side in SIDES[work][:-1]:
            if ours and side in told[work]:
                theirs = told[work][side]
                told[work][f"hftune of {side}"] = {
                    key: round(ours[key] / theirs[key], 2)
                    for key in ("tokens_per_cpu_second", "megabytes_above_model")
                }
        told[work]["targets against trainer"] = TARGETS[work]
    return told


if __name__ == "__main__":
    main()
