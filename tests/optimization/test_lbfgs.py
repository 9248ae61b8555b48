# SPDX-License-Identifier: Apache-2.0
"""L-BFGS through the Trainer, at an optimum that is known."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from hftune import Recipe, RecipeError
from hftune.optimization.lbfgs import BatchLBFGS
from hftune.training.build import build_trainer
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare


@pytest.fixture
def mixed_labels(tmp_path: Path) -> Path:
    """Four texts whose labels are shared out 6:2:2, 2:6:2, 2:2:6 and 5:4:1."""
    shares = {"red one": (6, 2, 2), "green two": (2, 6, 2), "blue three": (2, 2, 6),
              "alpha beta": (5, 4, 1)}  # fmt: skip
    rows = [
        {"text": text, "label": label}
        for text, counts in shares.items()
        for label, count in zip("abc", counts, strict=True)
        for _ in range(count)
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_head_reaches_the_optimum(make_recipe: Callable[..., Recipe], mixed_labels: Path) -> None:
    """Logistic regression on as many independent features as texts gives each text the shares of
    its labels: the maximum of the likelihood in closed form."""
    recipe = make_recipe(
        training={"optim": "lbfgs", "per_device_train_batch_size": 64, "max_steps": 8,
                  "eval_strategy": "no", "save_strategy": "no"},
        method="head_only",
        data={"path": str(mixed_labels), "validation_size": 0},
    )  # fmt: skip
    plan = prepare(recipe)
    model = load_model(plan).model
    build_trainer(plan, LoadedModel(model)).train()
    batch = plan.objective.task.collator(plan.pretrained.processor)(
        [plan.splits.train.dataset[i] for i in range(40)]
    )
    labels = batch.pop("labels")
    with torch.no_grad():
        probabilities = model.eval()(**batch).logits.softmax(-1)
    for text in {tuple(ids.tolist()) for ids in batch["input_ids"]}:
        here = [tuple(ids.tolist()) == text for ids in batch["input_ids"]]
        counts = Counter(labels[here].tolist())
        shares = torch.tensor([counts[label] / sum(here) for label in range(3)])
        torch.testing.assert_close(probabilities[here][0], shares, atol=1e-4, rtol=0)


def test_without_a_closure_it_says_so() -> None:
    weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(RuntimeError, match="several times a step"):
        BatchLBFGS([weight]).step()


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"gradient_accumulation_steps": 2}, "put all rows into one batch"),
        ({"max_grad_norm": 1.0}, "which nothing clips"),
        ({"max_grad_value": 1.0}, "which nothing clips"),
        ({"weight_decay": 0.1}, "this optimizer takes none"),
        ({"log_grad_norms": "layers"}, "which nothing clips or measures"),
        ({"layer_decay": 0.9}, "groups parameters by itself"),
    ],
)
def test_what_does_not_go_with_it(
    training: dict, says: str, make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(RecipeError, match=says):
        make_recipe(training={"optim": "lbfgs", **training})
