# SPDX-License-Identifier: Apache-2.0
"""Does the whole path of text2text-generation learn? A small T5 from scratch, exact match.

    python benchmarks/text2text.py

Real text with one right answer: the words of a Python name, out of its signature. The model reads
``class MinMaxScaler(OneToOneFeatureMixin, BaseEstimator)`` and writes ``min max scaler``. Rows are
those of ``demo:docstrings``; letters are tokens; no name is in both parts. Results go to
benchmarks/results/text2text.json; the run stays where ``--output`` says, to be looked at with
``hftune explain RUN --text "class MinMaxScaler(BaseEstimator)"``.
"""

import argparse
import json
import re
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration, set_seed

import hftune
from hftune.data.docstrings import docstring_rows

RESULTS = Path(__file__).parent / "results" / "text2text.json"
LETTERS = 48  # of a signature that are read
HELD_OUT = 200
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


def main() -> None:
    """Train, judge names that were never seen, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--output", type=Path, help="where the run stays")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        figures = measure(Path(place), options.output or Path(place) / "run", options.steps)
    print(json.dumps(figures, indent=2))
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")


def measure(place: Path, output: Path, steps: int) -> dict[str, Any]:
    """Train one model and return what it does on held-out names."""
    rows = list({row["target"]: row for row in map(as_pair, docstring_rows())}.values())
    train, test = Dataset.from_list(rows[HELD_OUT:]), Dataset.from_list(rows[:HELD_OUT])
    new_model(place / "model")
    recipe = hftune.Recipe(
        task="text2text-generation",
        model=str(place / "model"),
        data={"path": "names", "validation_size": 0},
        method="full",
        training={
            "output_dir": str(output),
            "max_steps": steps,
            "per_device_train_batch_size": 32,
            "learning_rate": 3e-3,
            "warmup_steps": 50,
            "logging_steps": 100,
            "save_strategy": "no",
            "use_cpu": True,
        },
    )
    run = hftune.train(recipe, train_dataset=train)
    written = hftune.predict(run, test, max_new_tokens=40)["prediction"]
    return {
        "command": "python benchmarks/text2text.py",
        "steps": steps,
        "train_rows": len(train),
        "test_rows": len(test),
        "exact_match": sum(map(str.__eq__, written, test["target"])) / len(test),
        "parameters": run.model.num_parameters(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "samples": [
            {**row, "written": text}
            for row, text in zip(test.select(range(5)), written, strict=False)
        ],
    }


def as_pair(row: dict[str, str]) -> dict[str, str]:
    """Return the signature's beginning, and its name as words."""
    name = row["name"].rpartition(".")[2]
    return {"text": row["signature"][:LETTERS], "target": " ".join(WORD.findall(name)).lower()}


def new_model(folder: Path) -> None:
    """Save a T5 of random weights whose tokens are bytes."""
    special = ["<pad>", "</s>"]
    vocabulary = {
        t: i for i, t in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    backend = Tokenizer(models.BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", model_max_length=128
    ).save_pretrained(folder)
    set_seed(0)
    config = T5Config(
        vocab_size=len(vocabulary), d_model=96, d_kv=24, d_ff=192, num_layers=2, num_heads=4,
        dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        relative_attention_num_buckets=32, relative_attention_max_distance=64,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
