# SPDX-License-Identifier: Apache-2.0
"""Does ReLoRA learn an update of a higher rank than LoRA can? A teacher that is built to want one.

    python benchmarks/fidelity/relora_rank.py

The student is a small Llama with random weights, the teacher the same model after a change of every
weight of its layers: random directions of a given rank, all singular values equal, as large as the
weight itself. Sentences are words drawn alike, so no direction of the hidden states matters more
than another, and what a low-rank update leaves out cannot hide. Only the layers learn; the loss is
the Kullback-Leibler divergence from teacher to student, in nats a token.

Each method runs at two rates with the first seed; the one with the lower divergence on validation
sentences is taken for the other seeds, and the divergence told is that of test sentences. A seed
draws the student, the teacher and the sentences.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cells import RESULTS, Cell, Cells, spread
from datasets import Dataset
from relora import low_rank, ranks
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

import hftune
from hftune.losses.loss import Batch, Loss, forward

STEPS, BATCH, LENGTH = 2000, 8, 64
WORDS, HIDDEN, LAYERS = 256, 64, 2
#: Larger than usual, so that the layers decide what the model says.
WEIGHT_STD = 0.1
SENTENCES = {"train": 4000, "validation": 100, "test": 200}
#: Ranks of the teacher's change: what the students' updates can hold, and the highest there is.
CHANGES = (4, HIDDEN)
RESTARTS = {"merge_every": 0.02, "rewarm_steps": 0.2}
METHODS: dict[str, tuple[dict[str, Any], list[float]]] = {
    "full": ({"name": "full"}, [3e-3, 1e-2]),
    "lora r=4": (low_rank("lora", 4), [1e-2, 2e-2]),
    "relora r=4": (low_rank("relora", 4, **RESTARTS), [1e-2, 2e-2]),
}
JUDGED = "validation_loss"


def main() -> None:
    """Measure the cells that are missing, and say what they show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--changes", type=int, nargs="+", default=list(CHANGES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--results", type=Path, default=RESULTS / "fidelity_relora_rank.json")
    options = parser.parse_args()
    cells = Cells(options.results, {"steps": options.steps, "batch": BATCH, "length": LENGTH,
                                    "hidden": HIDDEN, "layers": LAYERS, **RESTARTS})  # fmt: skip
    for change in options.changes:
        for method in options.methods:
            cells.over_seeds(
                lambda rate, seed, change=change, method=method: run_cell(
                    change, method, rate, seed, options.steps
                ),
                METHODS[method][1],
                options.seeds,
                JUDGED,
                change=change,
                method=method,
            )
    cells.tell(summary(cells))


def run_cell(change: int, method: str, rate: float, seed: int, steps: int) -> Cell:
    """Train one student and judge it on the test sentences."""
    with tempfile.TemporaryDirectory(prefix="fidelity-") as place:
        folder = Path(place)
        student(folder / "student", seed)
        teaching = Teaching(teacher(folder / "student", change, seed))
        section = METHODS[method][0]
        if section["name"] == "full":
            section = {"name": "freeze", "train_modules": ".*_proj"}
        recipe = hftune.Recipe(
            task="text-generation",
            model=str(folder / "student"),
            data={"block_size": LENGTH, "columns": {"text": "text"}},
            method=section,
            training={
                "output_dir": str(folder / "run"),
                "max_steps": steps,
                "learning_rate": rate,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 0.03,
                "weight_decay": 0.0,
                "per_device_train_batch_size": BATCH,
                "eval_strategy": "no",
                "save_strategy": "no",
                "seed": seed,
            },
        )
        texts = sentences(seed)
        rows = {part: Dataset.from_dict({"text": texts[part]}) for part in ("train", "validation")}
        began = time.perf_counter()
        run = hftune.train(
            recipe, train_dataset=rows["train"], eval_dataset=rows["validation"], loss=teaching
        )
        untrained: Any = LlamaForCausalLM.from_pretrained(folder / "student")
        figures: Cell = {
            JUDGED: teaching.divergence(run.model, run.tokenizer, texts["validation"]),
            "test_loss": teaching.divergence(run.model, run.tokenizer, texts["test"]),
            "start_loss": teaching.divergence(untrained, run.tokenizer, texts["test"]),
            "seconds": round(time.perf_counter() - began),
            "trainable_parameters": run.metrics["trainable_parameters"],
        }
        if section["name"] == "relora":
            figures["ranks"] = ranks(folder / "student", run.model_path)
        return figures


class Teaching(Loss):
    """The divergence from a teacher's answers to the model's, at every position.

    Args:
        teacher: Stands still.
    """

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher

    def denominator(self, batch: Batch) -> Tensor:
        """Return the number of positions."""
        return torch.tensor(batch["labels"].numel(), dtype=torch.float64)

    def total(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """Return the summed divergence and the model's outputs."""
        outputs = forward(model, inputs)
        with torch.no_grad():
            due = forward(self.teacher, inputs).logits.log_softmax(-1)
        own = outputs.logits.log_softmax(-1)
        return F.kl_div(own, due, reduction="sum", log_target=True), outputs

    def divergence(self, model: Any, tokenizer: Any, texts: list[str]) -> float:
        """Return the divergence a token, in nats."""
        model.cpu().eval()
        ids = torch.tensor([tokenizer(text)["input_ids"] for text in texts])
        total = torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            for rows in ids.split(BATCH):
                total += self.total(model, {"input_ids": rows, "labels": rows})[0]
        return round(float(total / ids.numel()), 4)


def student(folder: Path, seed: int) -> None:
    """Write a small Llama with random weights, and a tokenizer that knows its words."""
    words = {"<eos>": 0} | {f"w{index}": index for index in range(1, WORDS)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>"
    ).save_pretrained(folder)
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=2 * LENGTH, initializer_range=WEIGHT_STD,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def teacher(folder: Path, rank: int, seed: int) -> nn.Module:
    """Return the student with a change of a given rank, of the weight's size, on every layer."""
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("proj.weight"):
                noise = torch.randn(weight.shape, generator=chance)
                left, _, right = torch.linalg.svd(noise, full_matrices=False)
                turned = left[:, :rank] @ right[:rank]
                weight.add_(turned, alpha=float(weight.norm() / turned.norm()))
    return model.eval().requires_grad_(False)


def sentences(seed: int) -> dict[str, list[str]]:
    """Return sentences of words that are drawn alike, one short of a block."""
    chance = torch.Generator().manual_seed(seed + 1)
    return {
        part: [
            " ".join(f"w{word}" for word in row)
            for row in torch.randint(1, WORDS, (number, LENGTH - 1), generator=chance).tolist()
        ]
        for part, number in SENTENCES.items()
    }


def summary(cells: Cells) -> dict[str, Any]:
    """Return the divergences at the rates that validation chose, and ReLoRA's beside LoRA's.

    A seed draws another problem, so methods are compared seed by seed.
    """
    told: dict[str, Any] = {}
    for change, method in dict.fromkeys((cell["change"], cell["method"]) for cell in cells.all()):
        chosen = cells.chosen(JUDGED, change=change, method=method)
        part = told.setdefault(f"change of rank {change}", {})
        part[method] = {
            "rate": chosen[0]["rate"],
            "seeds": len(chosen),
            "test_loss": spread([cell["test_loss"] for cell in chosen]),
        }
        if method == "relora r=4":
            lora = {cell["seed"]: cell["test_loss"]
                    for cell in cells.chosen(JUDGED, change=change, method="lora r=4")}  # fmt: skip
            part[method]["above_lora"] = spread(
                [cell["test_loss"] - lora[cell["seed"]] for cell in chosen if cell["seed"] in lora]
            )
            part[method]["smallest_rank"] = min(cell["ranks"]["smallest"] for cell in chosen)
    return told


if __name__ == "__main__":
    main()
