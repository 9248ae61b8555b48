# SPDX-License-Identifier: Apache-2.0
"""When does ReLoRA pay? Against LoRA and full-rank training, at equal steps from one warm start.

    python benchmarks/fidelity/relora.py [--part pretraining teacher] [--seeds 0 1 2]

``pretraining``: a small Llama with random weights learns the docstrings of installed packages; all
its weights train for a while, and from there each method goes on for the same number of steps.
``teacher``: the same warm start learns texts that were drawn from itself with a random change of
full rank added to every weight, so the update that is wanted has a high rank by construction.

Each method runs at each of its rates, and the rate is chosen on validation texts; the loss told is
that of test texts. Results go to benchmarks/results/fidelity_relora.json after every cell; what is
there already is not run again, so the same command goes on after an interruption.
"""

import argparse
import ast
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

import hftune

RESULTS = Path(__file__).parents[1] / "results" / "fidelity_relora.json"
VERSIONS = ("hftune", "torch", "transformers", "peft", "accelerate", "datasets")
SOURCES = ("sklearn", "pandas", "networkx", "sympy")
CHARACTERS = 6_000_000
VOCABULARY = 2048
BLOCK = 128
BATCH = 16
#: Steps of the warm start, and of each method after it.
STEPS = {"warm": 300, "pretraining": 600, "teacher": 300}
RANK = 4
LORA = {"r": RANK, "lora_alpha": RANK, "target_modules": "all-linear"}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "lora": {"name": "lora", **LORA},
    "relora": {"name": "relora", **LORA, "merge_every": 0.125, "rewarm_steps": 0.1},
}
RATES = {"full": [5e-4, 1e-3, 2e-3], "lora": [2e-3, 5e-3, 1e-2], "relora": [2e-3, 5e-3, 1e-2]}
#: Size of the teacher's change of a weight, as a share of the weight's own.
CHANGE = 0.5
DRAWN_TEXTS, HELD_OUT = 3000, 200

Texts = dict[str, list[str]]


def main() -> None:
    """Run the cells that are missing and say what they show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", default=["pretraining", "teacher"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--rates", type=float, nargs="+", help="in place of each method's own")
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of steps")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    cells = results.setdefault("cells", {})
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            start = Start(Path(folder) / str(seed), seed, options.scale)
            for part in options.part:
                for method in options.methods:
                    for rate in options.rates or RATES[method]:
                        key = f"{part} {method} {rate:g} {seed} x{options.scale:g}"
                        if key not in cells:
                            told = {"part": part, "method": method, "rate": rate, "seed": seed}
                            cells[key] = told | start.cell(part, method, rate)
                            results["summary"] = summary(cells)
                            results["settings"] = settings()
                            options.results.write_text(json.dumps(results, indent=2) + "\n")
                        print(key, cells[key], flush=True)
    print(json.dumps(summary(cells), indent=2))


class Start:
    """The warm start of one seed, made when a cell first needs it.

    Args:
        folder: Where models lie while the program runs.
        seed: Of the weights, the order of the texts and the teacher.
        scale: Of all numbers of steps.
    """

    def __init__(self, folder: Path, seed: int, scale: float) -> None:
        self.folder, self.seed, self.scale = folder, seed, scale
        self.model: Path | None = None
        self.texts: dict[str, Texts] = {}
        self.floor: float | None = None

    def cell(self, part: str, method: str, rate: float) -> dict[str, Any]:
        """Train one method from the warm start and judge it on the test texts."""
        model = self.warm()
        texts = self.of(part)
        began = time.perf_counter()
        run = self.train(f"{part}-{method}-{rate:g}", model, texts, METHODS[method], rate, part)
        figures = {
            "validation_loss": round(run.metrics["eval_loss"], 4),
            "test_loss": round(loss(run, texts["test"]), 4),
            "start_loss": round(loss(hftune.load(self.folder / "warm"), texts["test"]), 4),
            "seconds": round(time.perf_counter() - began),
            "trainable_parameters": run.metrics["trainable_parameters"],
        }
        if self.floor is not None and part == "teacher":
            figures["teacher_loss"] = self.floor
        if method == "relora":
            figures["ranks"] = ranks(model, run.model_path)
        return figures

    def warm(self) -> Path:
        """Return the folder of the model that every method starts from."""
        if self.model is None:
            base = self.folder / "random"
            self.texts["pretraining"] = held_out(corpus(), self.seed)
            random_model(base, self.texts["pretraining"]["train"], self.seed)
            texts = self.texts["pretraining"]
            self.train("warm", base, texts, METHODS["full"], 1e-3, "warm")
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
                "max_steps": round(STEPS[part] * self.scale),
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
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=0, pad_token_id=0,
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
    return {"of_one_update": RANK, "smallest": min(found), "largest": max(found)}


def summary(cells: dict[str, Any]) -> dict[str, Any]:
    """Return each part's test losses at the rates that validation chose."""
    told: dict[str, Any] = {}
    for part, method in sorted({(cell["part"], cell["method"]) for cell in cells.values()}):
        here = [c for c in cells.values() if (c["part"], c["method"]) == (part, method)]
        by_rate: dict[float, list[dict[str, Any]]] = {}
        for cell in here:
            by_rate.setdefault(cell["rate"], []).append(cell)
        rate = min(by_rate, key=lambda r: mean(c["validation_loss"] for c in by_rate[r]))
        losses = [cell["test_loss"] for cell in by_rate[rate]]
        told.setdefault(part, {})[method] = {
            "rate": rate,
            "test_loss": round(mean(losses), 4),
            "spread": round(stdev(losses), 4) if len(losses) > 1 else None,
            "seeds": len(losses),
        }
    return told


def settings() -> dict[str, Any]:
    """Return what the figures rest on."""
    return {
        "command": "python benchmarks/fidelity/relora.py",
        "versions": {name: version(name) for name in VERSIONS},
        "machine": platform.machine(),
        "steps": STEPS,
        "rank": RANK,
        "merge_every": METHODS["relora"]["merge_every"],
    }


if __name__ == "__main__":
    main()
