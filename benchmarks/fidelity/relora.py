# SPDX-License-Identifier: Apache-2.0
"""Does ReLoRA pretrain a model as full-rank training does? Beside it and LoRA, from a warm start.

    python benchmarks/fidelity/relora.py

A small Llama with random weights learns the docstrings of installed packages; all its weights train
for a while, and from there each method goes on for the same number of steps. As in the paper,
embeddings, head and norms train whole beside the low-rank updates.

Each method runs at two rates or more with the first seed; the one with the lowest loss on
validation texts is taken for the other seeds, and the loss told is that of test texts.
"""

import argparse
import ast
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from cells import RESULTS, Cell, Cells, spread
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

import hftune

SOURCES = ("sklearn", "pandas", "networkx", "sympy")
CHARACTERS = 6_000_000
VOCABULARY = 2048
BLOCK, BATCH = 128, 8
#: Of the warm start, and of each method after it.
WARM_STEPS, STEPS = 300, 600
HELD_OUT = 200
WHOLE = ["embed_tokens", "lm_head", "input_layernorm", "post_attention_layernorm", "norm"]
RESTARTS = {"merge_every": 0.125, "rewarm_steps": 0.1}


def low_rank(name: str, r: int, **restarts: float) -> dict[str, Any]:
    """Return the section of a recipe; the scaling is 1."""
    return {"name": name, "r": r, "lora_alpha": r, "target_modules": "all-linear", **restarts}


METHODS: dict[str, tuple[dict[str, Any], list[float]]] = {
    "full": ({"name": "full"}, [1e-3, 2e-3, 5e-3]),
    "lora r=4": (low_rank("lora", 4), [3e-3, 1e-2]),
    "relora r=4": (low_rank("relora", 4, **RESTARTS), [3e-3, 1e-2]),
    "lora r=16": (low_rank("lora", 16), [3e-3, 1e-2]),
    "relora r=16": (low_rank("relora", 16, **RESTARTS), [3e-3, 1e-2]),
}
OF_FULL_RANK = 0.03

Texts = dict[str, list[str]]


def main() -> None:
    """Measure the cells that are missing, and say what they show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS / "fidelity_relora.json")
    options = parser.parse_args()
    cells = Cells(options.results, {"warm_steps": WARM_STEPS, "steps": STEPS, "batch": BATCH,
                                    "block": BLOCK, **RESTARTS})  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="fidelity-") as folder:
        starts = {seed: Start(Path(folder) / str(seed), seed) for seed in options.seeds}
        for method in options.methods:
            cells.over_seeds(
                lambda rate, seed, method=method: starts[seed].cell(method, rate),
                METHODS[method][1],
                options.seeds,
                "validation_loss",
                method=method,
            )
    cells.tell(summary(cells))


class Start:
    """The warm start of one seed, made when a cell first needs it.

    Args:
        folder: Where models lie while the program runs.
        seed: Of the weights and the order of the texts.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.model: Path | None = None
        self.texts: Texts = {}

    def cell(self, method: str, rate: float) -> Cell:
        """Train one method from the warm start and judge it on the test texts."""
        model = self.warm()
        section = METHODS[method][0]
        if section["name"] != "full":
            section = section | {"modules_to_save": WHOLE}
        began = time.perf_counter()
        run = self.train(f"{method} {rate:g}", model, section, rate, STEPS)
        figures: Cell = {
            "validation_loss": round(loss(run, self.texts["validation"]), 4),
            "test_loss": round(loss(run, self.texts["test"]), 4),
            "start_loss": round(loss(hftune.load(self.folder / "warm"), self.texts["test"]), 4),
            "seconds": round(time.perf_counter() - began),
            "trainable_parameters": run.metrics["trainable_parameters"],
        }
        if section["name"] == "relora":
            figures["ranks"] = ranks(model, run.model_path)
        return figures

    def warm(self) -> Path:
        """Return the folder of the model that every method starts from."""
        if self.model is None:
            base = self.folder / "random"
            self.texts = held_out(corpus(), self.seed)
            random_model(base, self.texts["train"], self.seed)
            self.train("warm", base, METHODS["full"][0], 1e-3, WARM_STEPS)
            self.model = self.folder / "warm" / "model"
        return self.model

    def train(
        self, name: str, model: Path, method: dict[str, Any], rate: float, steps: int
    ) -> hftune.Run:
        """Train a model on texts cut in blocks."""
        recipe = hftune.Recipe(
            task="text-generation",
            model=str(model),
            data={"block_size": BLOCK, "columns": {"text": "text"}},
            method=method,
            training={
                "output_dir": str(self.folder / name),
                "max_steps": steps,
                "learning_rate": rate,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 0.05,
                "weight_decay": 0.0,
                "per_device_train_batch_size": BATCH,
                "per_device_eval_batch_size": BATCH,
                "eval_strategy": "no",
                "save_strategy": "no",
                "seed": self.seed,
            },
        )
        rows = [Dataset.from_dict({"text": self.texts[part]}) for part in ("train", "validation")]
        return hftune.train(recipe, train_dataset=rows[0], eval_dataset=rows[1])


def corpus() -> list[str]:
    """Return the docstrings of installed packages, as long as they are, up to a limit."""
    texts: list[str] = []
    for package in SOURCES:
        taken = 0
        for text in docstrings(package):
            if taken > CHARACTERS // len(SOURCES):
                break
            texts.append(text)
            taken += len(text)
    return texts


def docstrings(package: str) -> Iterator[str]:
    """Yield the docstrings of a package's source files, which are parsed and never imported."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed")
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > 200:
                    yield text


def held_out(texts: list[str], seed: int) -> Texts:
    """Shuffle, and keep some texts to choose by and some to judge by."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [texts[index] for index in order]
    return {
        "test": shuffled[:HELD_OUT],
        "validation": shuffled[HELD_OUT : 2 * HELD_OUT],
        "train": shuffled[2 * HELD_OUT :],
    }


def random_model(folder: Path, texts: list[str], seed: int) -> None:
    """Write a small Llama with random weights and a tokenizer learned from the texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>"
    ).save_pretrained(folder)
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=352, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=2 * BLOCK,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def loss(run: hftune.Run, texts: list[str]) -> float:
    """Return the loss a token, in nats."""
    return float(hftune.evaluate(run, Dataset.from_dict({"text": texts}))["eval_loss"])


def ranks(start: Path, end: Path) -> dict[str, int]:
    """Return the smallest and the largest rank of the change of a weight."""
    before = LlamaForCausalLM.from_pretrained(start).state_dict()
    after = LlamaForCausalLM.from_pretrained(end).state_dict()
    found = [
        int(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3))
        for name in before
        if name.endswith("proj.weight")
    ]
    return {"smallest": min(found), "largest": max(found)}


def summary(cells: Cells) -> dict[str, Any]:
    """Return the test losses at the rates that validation chose, full-rank training first."""
    told: dict[str, Any] = {}
    for method in dict.fromkeys(cell["method"] for cell in cells.all()):
        chosen = cells.chosen("validation_loss", method=method)
        losses = spread([cell["test_loss"] for cell in chosen])
        above = losses["mean"] / told.get("full", {"test_loss": losses})["test_loss"]["mean"] - 1
        told[method] = {"rate": chosen[0]["rate"], "seeds": len(chosen), "test_loss": losses,
                        "above_full": round(above, 4), "kept": above <= OF_FULL_RANK}  # fmt: skip
    return told


if __name__ == "__main__":
    main()
