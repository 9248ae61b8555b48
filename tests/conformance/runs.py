# SPDX-License-Identifier: Apache-2.0
"""A short run of every method, from a recipe to the folder that it leaves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import hftune
from hftune import Recipe
from hftune.methods import ROWS
from hftune.models.save import save_model
from hftune.tasks import task_row
from hftune.training.build import build_trainer
from hftune.training.finish import model_metadata
from hftune.training.load_model import load_model
from hftune.training.plan.prepare import prepare
from tests.conformance.cases import options_of

ADDED = "<sku>"
TEXTS = [f"alpha {ADDED} red", "two green blue one"]
#: Of the tasks, which a method is tried on: the first that it suits.
TASKS = {
    "text-classification": AutoModel,
    "text-generation": AutoModelForCausalLM,
}


def save_base(source: Path, folder: Path, task: str, change: Callable[[Any], Any]) -> Path:
    """Save a tiny model with one more token than it came with, and changed."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens([ADDED])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = TASKS[task].from_pretrained(source)
    model.resize_token_embeddings(len(tokenizer))
    change(model)
    model.save_pretrained(folder)
    return folder


def task_of(name: str) -> str:
    """Return what a method is tried on."""
    return next(task for task in TASKS if ROWS[name].suits(task_row(task)))


def text_logits(model: Any, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Return the ids of the texts, and what a model makes of them."""
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        return batch["input_ids"], model.eval()(**batch).logits


@dataclass
class Saved:
    """What a run left.

    Attributes:
        folder: The run's; ``model/`` is in it.
        ids: Of the texts.
        logits: Of the texts, by the model in memory.
    """

    folder: Path
    ids: Tensor
    logits: Tensor


class Runs:
    """The runs, each trained when it is asked for first.

    Args:
        root: Where they go.
        bases: Task to base model.
        data: Task to rows.
    """

    def __init__(self, root: Path, bases: dict[str, Path], data: dict[str, Path]) -> None:
        self.root, self.bases, self.data = root, bases, data
        self._saved: dict[str, Saved] = {}

    def __call__(self, name: str) -> Saved:
        """Return what the run of a method left."""
        if name not in self._saved:
            self._saved[name] = self._train(name)
        return self._saved[name]

    def recipe(self, name: str, folder: Path, **sections: Any) -> Recipe:
        """Return the recipe of a short run."""
        task = task_of(name)
        whole = {
            "task": task,
            "model": {"path": str(self.bases[task])},
            "data": {"path": str(self.data[task]), "validation_size": 0},
            "method": {"name": name, **options_of(name)},
            "training": {"output_dir": str(folder), "use_cpu": True},
        }
        if not ROWS[name].fitted:
            whole["training"] |= {
                "max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 0.01,
                "eval_strategy": "no", "save_strategy": "no", "warmup_steps": 0,
            }  # fmt: skip
        return Recipe(**{**whole, **sections})

    def _train(self, name: str) -> Saved:
        folder = self.root / name
        recipe = self.recipe(name, folder)
        if ROWS[name].fitted:
            run = hftune.train(recipe)
            return Saved(folder, *text_logits(run.model, run.tokenizer))
        plan = prepare(recipe)
        loaded = load_model(plan)
        build_trainer(plan, loaded).train()
        finished: Any = plan.objective.method.finish(loaded.model)
        metadata = model_metadata(plan, loaded.base_fingerprint)
        save_model(folder / "model", finished, plan.pretrained.processor, metadata, "")
        return Saved(folder, *text_logits(finished, plan.pretrained.processor))
