# SPDX-License-Identifier: Apache-2.0
"""How fast is a training step, and how much memory does it take? Against Transformers' Trainer.

    python benchmarks/speed.py                                    # every work, five rounds
    python benchmarks/speed.py --works classification --rounds 3
    python benchmarks/speed.py --threads 2                       # read the seconds on the wall
    python benchmarks/speed.py --data sms_spam=ROWS.csv           # columns text and label

All sides train MiniLM on the same rows, of ``demo:docstrings`` or a file, in the same float32,
batch size and number of steps, each in a process of its own; ``trainer`` is
``transformers.Trainer`` with its padding collator, ``by_length`` the same with
``train_sampling_strategy: group_by_length``. Rounds alternate between the sides. Told are real
tokens (no padding) per CPU second and per second of the optimizer steps after WARM, and the most
memory that the process held above what it held with the model loaded. The machine may be shared:
read the ratios. A round that is kept is not run again. Language models: ``benchmarks/peers.py``.
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
#: ``sft`` is what benchmarks/ceiling.py trains beside.
BATCH = {"classification": 16, "evaluation": 16, "sft": 8}
STEPS = {"classification": 50, "evaluation": 0, "sft": 8}
MAX_LENGTH, EVALUATED = 256, 1500
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
SIDES = {
    "classification": ("trainer", "by_length", "hftune"),
    "evaluation": ("trainer", "hftune"),
}
#: Of the first side: tokens a second at least, memory at most.
TARGETS = {"classification": (2.3, 0.5), "evaluation": (1.9, None)}
#: What is told of a run.
FIGURES = ("tokens_per_cpu_second", "tokens_per_second", "megabytes_above_model")


def main() -> None:
    """Measure the rounds that are missing, and say what they show; or one, for the parent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", default="docstrings", metavar="NAME=FILE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS / "speed.json")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        work, side, path, threads = options.one
        torch.set_num_threads(int(threads))
        print(json.dumps(measure(work, side, path)))
        return
    data, _, file = options.data.partition("=")
    settings = {"batch": BATCH, "steps": STEPS, "max_length": MAX_LENGTH, "evaluated": EVALUATED}
    cells = Cells(options.results, settings)
    path, threads = file or "demo:docstrings", str(options.threads)
    for number in range(options.rounds):
        for work in options.works:
            for side in SIDES[work]:
                cells.measure(
                    lambda w=work, s=side: in_a_process(
                        __file__, w, s, path, threads, ours=s == "hftune"
                    ),
                    data=data, threads=options.threads, work=work, side=side, round=number,
                )  # fmt: skip
    cells.tell(summary(cells))


def measure(work: str, side: str, path: str) -> Cell:
    """Train, or evaluate, and return tokens a second and megabytes above the loaded model."""
    with (
        tempfile.TemporaryDirectory(prefix="speed-") as folder,
        made(work, side, path, folder) as trainer,
    ):
        clock = Clock()
        trainer.add_callback(clock)
        begun = memory()
        if work == "evaluation":
            clock.start()
            trainer.predict(trainer.eval_dataset)
            clock.stop()
            tokens = sum(map(len, trainer.eval_dataset["input_ids"]))
        else:
            trainer.data_collator = clock.counting(trainer.data_collator)
            trainer.train()
            tokens = clock.tokens
    return {
        "tokens_per_cpu_second": round(tokens / clock.spent, 1),
        "tokens_per_second": round(tokens / clock.passed, 1),
        "megabytes_above_model": round((memory() - begun) / 2**20),
    }


@contextmanager
def made(work: str, side: str, path: str, folder: str) -> Iterator[Any]:
    """Yield a Trainer of either side, the model loaded."""
    from hftune.training.build import build_trainer
    from hftune.training.load_model import LoadedModel, load_model
    from hftune.training.plan.prepare import prepare
    from hftune.training.speedups import without_padding

    plan = prepare(recipe(work, side, path, folder))
    model = load_model(plan).model
    if side == "hftune":
        trainer = build_trainer(plan, LoadedModel(model))
        with without_padding(plan, trainer):
            yield trainer
        return
    import transformers

    assert plan.splits.validation is not None
    kept = ("input_ids", "attention_mask", "labels")
    splits = {"train": plan.splits.train.dataset, "validation": plan.splits.validation.dataset}
    rows = {
        name: rows.remove_columns([c for c in rows.column_names if c not in kept])
        for name, rows in splits.items()
    }
    plan = plan.with_arguments(prediction_loss_only=False)
    yield transformers.Trainer(
        model=model,
        args=plan.settings.arguments,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=plan.objective.task.collator(plan.pretrained.processor, model),
    )


def recipe(work: str, side: str, path: str, folder: str) -> Any:
    """Return what all sides train."""
    import hftune

    return hftune.Recipe(
        task="text-generation" if work == "sft" else "text-classification",
        model="demo:smollm2" if work == "sft" else "demo:minilm",
        data={
            "path": path,
            "validation_size": EVALUATED,
            "max_length": MAX_LENGTH,
            "max_train_samples": 4000,
        },
        method={"name": "lora", **LORA} if work == "sft" else "full",
        training={
            "output_dir": f"{folder}/run",
            "max_steps": WARM + STEPS[work],
            "per_device_train_batch_size": BATCH[work],
            "per_device_eval_batch_size": BATCH[work],
            "train_sampling_strategy": "group_by_length" if side == "by_length" else "random",
            "eval_strategy": "no",
            "save_strategy": "no",
            "learning_rate": 1e-4,
        },
    )


class Clock(TrainerCallback):
    """Counts real tokens of the steps after WARM, and CPU seconds and those on the wall."""

    def __init__(self) -> None:
        self.spent = self.passed = 0.0
        self.batches: list[int] = []

    def start(self) -> None:
        """Begin to count."""
        self.begun = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        """Note the seconds since the start."""
        self.spent = time.process_time() - self.begun[0]
        self.passed = time.perf_counter() - self.begun[1]

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
            self.start()
        elif state.global_step > WARM:
            self.stop()
        self.steps = state.global_step - WARM


def memory() -> int:
    """Return the most memory that this process held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def summary(cells: Cells) -> dict[str, Any]:
    """Return medians of each side, and ours against the others', for each data set and work."""
    told: dict[str, Any] = {}
    for given in dict.fromkeys((c["data"], c["threads"], c["work"]) for c in cells.all()):
        data, threads, work = given
        of = {side: cells.all(data=data, threads=threads, work=work, side=side)
              for side in SIDES[work]}  # fmt: skip
        told[f"{data}, {threads} threads, {work}"] = found = {
            side: {"rounds": len(kept)} | medians(kept) for side, kept in of.items() if kept
        }
        ours = found.get("hftune", {})
        for side in SIDES[work][:-1]:
            if ours and side in found:
                both = [name for name in FIGURES if name in ours and name in found[side]]
                found[f"hftune of {side}"] = {
                    name: round(ours[name] / found[side][name], 2) for name in both
                }
        found["targets against trainer"] = TARGETS[work]
    return told


def medians(kept: list[Cell]) -> dict[str, float]:
    """Return the medians of the figures that rounds have."""
    known = {name: [cell[name] for cell in kept if name in cell] for name in FIGURES}
    return {name: round(median(values), 1) for name, values in known.items() if values}


if __name__ == "__main__":
    main()
