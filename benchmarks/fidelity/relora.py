# SPDX-License-Identifier: Apache-2.0
"""When does ReLoRA pay? Against LoRA and full-rank training, at equal steps from one warm start.

    python benchmarks/fidelity/relora.py

``pretraining``: a small Llama with random weights learns the docstrings of installed packages; all
its weights train for a while, and from there each method goes on for the same number of steps.
``teacher``: the same warm start learns texts that were drawn from itself with a random change of
full rank added to every weight, so the update that is wanted has a high rank by construction.
As in the paper, embeddings, head and norms train whole beside the low-rank updates.

Each method runs at two rates with the first seed; the one with the lower loss on validation texts
is taken for the other seeds, and the loss told is that of test texts.
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
#: Steps of the warm start, and of each method after it.
STEPS = {"warm": 300, "pretraining": 600, "teacher": 300}
#: Size of the teacher's change of a weight, as a share of the weight's own.
CHANGE = 0.5
DRAWN_TEXTS, HELD_OUT = 3000, 200
WHOLE = ["embed_tokens", "lm_head", "input_layernorm", "post_attention_layernorm", "norm"]
RESTARTS = {"merge_every": 0.125, "rewarm_steps": 0.1}


def low_rank(name: str, r: int, **restarts: float) -> dict[str, Any]:
    """Return the section of a recipe; the scaling is 1."""
    return {"name": name, "r": r, "lora_alpha": r, "target_modules": "all-linear",
            "modules_to_save": WHOLE, **restarts}  # fmt: skip


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
    parser.add_argument("--parts", nargs="+", default=["pretraining", "teacher"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of steps")
    parser.add_argument("--results", type=Path, default=RESULTS / "fidelity_relora.json")
    options = parser.parse_args()
    steps = {part: round(number * options.scale) for part, number in STEPS.items()}
    cells = Cells(options.results, {"steps": steps, "batch": BATCH, "block": BLOCK, **RESTARTS})
    with tempfile.TemporaryDirectory(prefix="fidelity-") as folder:
        starts = {seed: Start(Path(folder) / str(seed), seed, steps) for seed in options.seeds}
        for part in options.parts:
            for method in options.methods:
                cells.over_seeds(
                    lambda rate, seed, part=part, method=method: starts[seed].cell(
                        part, method, rate
                    ),
                    METHODS[method][1],
                    options.seeds,
                    "validation_loss",
                    part=part,
                    method=method,
                )
    cells.tell(summary(cells))


class Start:
    """The warm start of one seed, made when a cell first needs it.

    Args:
        folder: Where models lie while the program runs.
        seed: Of the weights, the order of the texts and the teacher.
        steps: Of each part.
    """

    def __init__(self, folder: Path, seed: int, steps: dict[str, int]) -> None:
        self.folder, self.seed, self.steps = folder, seed, steps
        self.model: Path | None = None
        self.texts: dict[str, Texts] = {}
        self.floor: float | None = None

    def cell(self, part: str, method: str, rate: float) -> Cell:
        """Train one method from the warm start and judge it on the test texts."""
        model = self.warm()
        texts = self.of(part)
        began = time.perf_counter()
        section = METHODS[method][0]
        run = self.train(f"{part} {method} {rate:g}", model, texts, section, rate, part)
        figures: Cell = {
            "validation_loss": round(run.metrics["eval_loss"], 4),
            "test_loss": round(loss(run, texts["test"]), 4),
            "start_loss": round(loss(hftune.load(self.folder / "warm"), texts["test"]), 4),
            "seconds": round(time.perf_counter() - began),
            "trainable_parameters": run.metrics["trainable_parameters"],
        }
        if part == "teacher":
            figures["teacher_loss"] = self.floor
        if section["name"] == "relora":
            figures["ranks"] = ranks(model, run.model_path)
        return figures

    def warm(self) -> Path:
        """Return the folder of the model that every method starts from."""
        if self.model is None:
            base = self.folder / "random"
            self.texts["pretraining"] = held_out(corpus(), self.seed)
            random_model(base, self.texts["pretraining"]["train"], self.seed)
            texts = self.texts["pretraining"]
            self.train("warm", base, texts, METHODS["full"][0], 1e-3, "warm")
            self.model = self.folder / "warm" / "model"
        return self.model

    def of(self, part: str) -> Texts:
        """Return the texts of a part."""
        if part == "teacher" and part not in self.texts:
            self.texts[part], self.floor = self.drawn()
        return self.texts[part]

    def drawn(self) -> tuple[Texts, float]:
        """Draw texts from the changed model; return them and its own loss on the test texts."""
        set_seed(self.seed)
        run = hftune.load(self.folder / "warm")
        teacher: Any = run.model
        with torch.no_grad():
            for name, weight in teacher.named_parameters():
                if weight.dim() == 2 and "embed" not in name and "lm_head" not in name:
                    noise = torch.randn_like(weight)
                    weight.add_(noise, alpha=float(CHANGE * weight.norm() / noise.norm()))
        texts: list[str] = []
        tokenizer: Any = run.tokenizer
        while len(texts) < DRAWN_TEXTS:
            starts = torch.full((100, 1), tokenizer.eos_token_id)
            ids = teacher.generate(
                starts, attention_mask=torch.ones_like(starts), do_sample=True, top_k=0,
                max_new_tokens=BLOCK, pad_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
            texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
        parts = held_out(texts, self.seed)
        return parts, round(loss(run, parts["test"]), 4)

    def train(
        self, name: str, model: Path, texts: Texts, method: dict[str, Any], rate: float, part: str
    ) -> hftune.Run:
        """Train a model on texts cut in blocks, for the steps of a part."""
        recipe = hftune.Recipe(
            task="text-generation",
            model=str(model),
            data={"block_size": BLOCK, "columns": {"text": "text"}},
            method=method,
            training={
                "output_dir": str(self.folder / name),
                "max_steps": self.steps[part],
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
        rows = {part: Dataset.from_dict({"text": texts[part]}) for part in ("train", "validation")}
        return hftune.train(recipe, train_dataset=rows["train"], eval_dataset=rows["validation"])


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
    """Return each part's test losses at the rates that validation chose."""
    told: dict[str, Any] = {}
    for part, method in dict.fromkeys((cell["part"], cell["method"]) for cell in cells.all()):
        chosen = cells.chosen("validation_loss", part=part, method=method)
        losses = spread([cell["test_loss"] for cell in chosen])
        told.setdefault(part, {})[method] = {"rate": chosen[0]["rate"], "seeds": len(chosen)}
        told[part][method] |= {"test_loss": losses}
        if "full" in told[part]:
            above = losses["mean"] / told[part]["full"]["test_loss"]["mean"] - 1
            told[part][method] |= {"above_full": round(above, 4), "kept": above <= OF_FULL_RANK}
    return told


if __name__ == "__main__":
    main()
