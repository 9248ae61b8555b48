# SPDX-License-Identifier: Apache-2.0
"""hftune against a plain Transformers script on tagged words: same settings, F1 and speed of both.

    python benchmarks/token_classification.py TRAIN.jsonl TEST.jsonl --name wnut17 --epochs 2

Rows are ``{"tokens": [...], "tags": [...]}``. The plain script aligns by ``word_ids`` of split
words, trains with ``transformers.Trainer`` as it is, and is judged by seqeval (extra ``test``).
Speed is measured apart, in short runs that take turns: the processor seconds of the training loop,
since other programs may share the machine. Results are added to
benchmarks/results/token_classification.json.
"""

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from seqeval.metrics import f1_score
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import hftune
from hftune.models.load import pretrained_path

RESULTS = Path(__file__).parent / "results" / "token_classification.json"
MAX_LENGTH = 128
SPEED_ROWS = 96


def main() -> None:
    """Train and judge both sides, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--name", required=True, help="of the data, in the file of results")
    parser.add_argument("--model", default="demo:minilm")
    parser.add_argument("--rows", type=int, help="train on this many, drawn by a fixed seed")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, default=5, help="of the two that measure speed")
    options = parser.parse_args()
    train, test = read(options.train), read(options.test)
    random.Random(0).shuffle(train)
    train = train[: options.rows]
    names = ["O", *sorted({tag for row in train + test for tag in row["tags"]} - {"O"})]
    seeds = []
    for seed in options.seeds:
        shared = {
            "learning_rate": options.rate,
            "num_train_epochs": options.epochs,
            "per_device_train_batch_size": 16,
            "weight_decay": 0.01,
            "warmup_steps": 0.1,
            "seed": seed,
            "save_strategy": "no",
            "report_to": "none",
        }
        measured: dict[str, float] = {"seed": seed}
        for side, run in SIDES.items():
            measured[f"{side}_f1"] = round(
                run(options.model, train, test, names, shared, Clock()), 4
            )
        print(measured)
        seeds.append(measured)
    small = train[:SPEED_ROWS], test[:1]
    speed = compare_speed(options.model, *small, names, shared, options.rounds)
    print(speed)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[options.name] = {
        "model": options.model,
        "rows": {"train": len(train), "test": len(test)},
        "settings": {key: value for key, value in shared.items() if key != "seed"},
        "versions": {
            name: version(name) for name in ("torch", "transformers", "datasets", "seqeval")
        }
        | {"machine": platform.machine()},
        "seeds": seeds,
        "speed": speed,
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


class Clock(TrainerCallback):
    """Processor seconds of the training loop, all threads together."""

    seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start."""
        self.seconds = -time.process_time()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop."""
        self.seconds += time.process_time()


def compare_speed(
    model: str,
    train: list[Any],
    test: list[Any],
    names: list[str],
    shared: dict[str, Any],
    rounds: int,
) -> dict[str, float]:
    """Return the median processor seconds of a short training on each side, and their ratio.

    The sides take turns; a first turn of each, which pays for imports and caches, is not counted.
    """
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds + 1):
        for side, run in SIDES.items():
            clock = Clock()
            run(model, train, test, names, {**shared, "num_train_epochs": 1}, clock)
            seconds[side].append(clock.seconds)
    ratios = [a / b for a, b in zip(seconds["hftune"][1:], seconds["plain"][1:], strict=True)]
    return {
        "rows": len(train),
        "rounds": rounds,
        **{
            f"{side}_cpu_seconds": round(statistics.median(of[1:]), 2)
            for side, of in seconds.items()
        },
        "ratio": round(statistics.median(ratios), 3),
    }


def read(path: Path) -> list[dict[str, list[str]]]:
    """Return tokens and tags of each row."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{"tokens": row["tokens"], "tags": row["tags"]} for row in rows]


def with_hftune(
    model: str,
    train: list[Any],
    test: list[Any],
    names: list[str],
    shared: dict[str, Any],
    clock: Clock,
) -> float:
    """Return the entity F1 of ``hftune.train``."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = hftune.Recipe(
            task="token-classification",
            model=model,
            data={"validation_size": 0, "max_length": MAX_LENGTH, "label_names": names},
            method="full",
            training={**shared, "output_dir": f"{folder}/run"},
        )
        rows = Dataset.from_list(train)
        run = hftune.train(recipe, train_dataset=rows, callbacks=[clock])
        f1: float = hftune.evaluate(run, Dataset.from_list(test))["eval_f1"]
    return f1


def with_trainer(
    model: str,
    train: list[Any],
    test: list[Any],
    names: list[str],
    shared: dict[str, Any],
    clock: Clock,
) -> float:
    """Return the entity F1 of a script that knows nothing of hftune."""
    location = pretrained_path(model)
    tokenizer = AutoTokenizer.from_pretrained(location)
    set_seed(shared["seed"])
    network = AutoModelForTokenClassification.from_pretrained(location, num_labels=len(names))

    def encode(row: dict[str, list[str]]) -> dict[str, list[int]]:
        tokens = tokenizer(
            row["tokens"], is_split_into_words=True, truncation=True, max_length=MAX_LENGTH
        )
        words = tokens.word_ids()
        tokens["labels"] = [
            names.index(row["tags"][word])
            if word is not None and (index == 0 or words[index - 1] != word)
            else -100
            for index, word in enumerate(words)
        ]
        return tokens

    def encoded(rows: list[Any]) -> Dataset:
        return Dataset.from_list([dict(encode(row)) for row in rows])

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=network,
            args=TrainingArguments(
                **shared, output_dir=folder, disable_tqdm=True, dataloader_pin_memory=False
            ),
            train_dataset=encoded(train),
            data_collator=DataCollatorForTokenClassification(tokenizer),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
        output = trainer.predict(encoded(test))
    pairs = [
        (labels[labels != -100], logits.argmax(-1)[labels != -100])
        for labels, logits in zip(output.label_ids, output.predictions, strict=True)
    ]
    true = [[names[index] for index in labels] for labels, _ in pairs]
    predicted = [[names[index] for index in row] for _, row in pairs]
    return float(f1_score(true, predicted))


SIDES = {"hftune": with_hftune, "plain": with_trainer}

if __name__ == "__main__":
    main()
