# SPDX-License-Identifier: Apache-2.0
"""The loss contract, the overridden signatures, and what evaluation says."""

import inspect
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import Trainer

from hftune import Recipe
from hftune.losses.cross_entropy import CrossEntropy
from hftune.training.build import build_trainer
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare
from hftune.training.trainer import HftuneTrainer

SPLITS = [(8, 1), (4, 2), (2, 4), (1, 8)]
OVERRIDDEN = [
    "get_train_dataloader",
    "get_batch_samples",
    "compute_loss",
    "training_step",
    "prediction_step",
    "_get_train_sampler",
    "get_total_train_batch_size",
    "create_optimizer",
    "create_scheduler",
    "floating_point_ops",
    "_get_grad_norm",
    "log",
    "evaluate",
    "_load_from_checkpoint",
    "_load_best_model",
    "_get_output_dir",
    "_save_checkpoint",
    "_issue_warnings_after_load",
]


def trained_weights(recipe: Recipe, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    plan = prepare(recipe)
    model = load_model(plan).model.to(dtype)
    build_trainer(plan, LoadedModel(model)).train()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("task", ["text-classification", "text-generation", "text2text-generation"])
def test_one_step_is_the_same_in_every_split(task: str, make_recipe: Callable[..., Recipe]) -> None:
    """20 ragged rows in groups of 8, 8 and 4, split four ways, give the same weights in fp64.

    A whole training each; every loss and option is in test_loss_contract.py.
    """
    options = {
        "optim": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
        "num_train_epochs": 1,
        "max_steps": -1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
        "label_smoothing_factor": 0.1,
    }
    path = make_recipe(task).data.path
    results = [
        trained_weights(
            make_recipe(
                task,
                {
                    **options,
                    "per_device_train_batch_size": rows,
                    "gradient_accumulation_steps": groups,
                },
                data={"path": path, "max_train_samples": 20, "validation_size": 0},
                loss={"name": "cross_entropy", "class_weights": "balanced"},
            ),
            torch.float64,
        )
        for rows, groups in SPLITS
    ]
    for weights in results[1:]:
        for name, value in weights.items():
            torch.testing.assert_close(value, results[0][name], atol=1e-10, rtol=0)


@pytest.mark.parametrize("task", ["text-classification", "text-generation"])
def test_a_step_equals_a_plain_loop(task: str, make_recipe: Callable[..., Recipe]) -> None:
    """One SGD step of the Trainer against ten lines of PyTorch with torch's own weighted mean."""
    recipe = make_recipe(
        task,
        {
            "optim": "sgd",
            "learning_rate": 0.5,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "max_grad_norm": 0.0,
            "weight_decay": 0.0,
            "max_steps": 1,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "train_sampling_strategy": "sequential",
            "eval_strategy": "no",
            "save_strategy": "no",
        },
        loss={"name": "cross_entropy", "class_weights": "balanced"},
    )
    plan = prepare(recipe)
    assert isinstance(plan.objective.loss, CrossEntropy)
    weight = plan.objective.loss.weight
    model = load_model(plan).model
    batch = plan.objective.task.collator(plan.pretrained.processor)(
        [plan.splits.train.dataset[i] for i in range(8)]
    )
    labels = batch.pop("labels")
    logits = model(**batch).logits
    if task == "text-generation":
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    loss = F.cross_entropy(logits, labels, weight=weight, ignore_index=-100)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.5 * parameter.grad)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    actual = trained_weights(recipe)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=1e-6, rtol=0)


def test_operations_are_estimated_as_transformers_does(make_recipe: Callable[..., Recipe]) -> None:
    plan = prepare(make_recipe())
    trainer = build_trainer(plan, load_model(plan))
    for shape in ((2, 7), (3, 5)):
        batch = {"input_ids": torch.zeros(shape)}
        assert trainer.floating_point_ops(batch) == Trainer.floating_point_ops(trainer, batch)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_signatures_are_still_transformers_own(name: str) -> None:
    theirs = inspect.signature(getattr(Trainer, name)).parameters
    ours = inspect.signature(getattr(HftuneTrainer, name)).parameters
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]


def test_tied_weights_are_not_called_missing(
    make_recipe: Callable[..., Recipe], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = prepare(make_recipe("text2text-generation"))
    model = load_model(plan).model
    trainer = build_trainer(plan, LoadedModel(model))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    caplog.set_level(logging.WARNING, logger="transformers")
    logging.getLogger("transformers").addHandler(caplog.handler)  # it does not propagate
    try:
        result = model.load_state_dict(saved, strict=False)
        assert result.missing_keys, "nothing is tied here"
        trainer._issue_warnings_after_load(result)
        assert caplog.text == ""
        del saved["shared.weight"], saved["encoder.final_layer_norm.weight"]
        trainer._issue_warnings_after_load(model.load_state_dict(saved, strict=False))
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "['shared.weight', 'encoder.final_layer_norm.weight']" in caplog.text


def test_evaluation_loss_is_weighted_by_tokens(make_recipe: Callable[..., Recipe]) -> None:
    """Ragged rows in batches of 3: the mean over tokens, not the mean over batches."""
    recipe = make_recipe("text-generation", {"per_device_eval_batch_size": 3, "max_steps": 1})
    plan = prepare(recipe)
    model = load_model(plan).model
    metrics = build_trainer(plan, LoadedModel(model)).evaluate()
    total = tokens = 0.0
    model.eval()
    for row in plan.splits.validation.dataset:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        total += F.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum").item()
        tokens += int((labels[1:] != -100).sum())
    assert metrics["eval_loss"] == pytest.approx(total / tokens, abs=1e-5)
    assert metrics["eval_tokens"] == tokens


def test_evaluation_keeps_scores_of_each_row_in_order(make_recipe: Callable[..., Recipe]) -> None:
    plan = prepare(make_recipe(training={"per_device_eval_batch_size": 4}))
    model = load_model(plan).model
    output = build_trainer(plan, LoadedModel(model)).predict(plan.splits.validation.dataset)
    batches = DataLoader(
        plan.splits.validation.dataset,
        1,
        collate_fn=plan.objective.task.collator(plan.pretrained.processor),
    )
    with torch.no_grad():
        one_by_one = torch.cat([model(**batch).logits for batch in batches])
    torch.testing.assert_close(
        torch.tensor(output.predictions["scores"]), one_by_one, atol=1e-5, rtol=0
    )
    assert list(output.label_ids) == plan.splits.validation.dataset["labels"][:]


def test_a_group_without_labels_leaves_the_weights(make_recipe: Callable[..., Recipe]) -> None:
    """Blank rows alone: no division by zero."""
    plan = prepare(make_recipe())
    trainer = build_trainer(plan, load_model(plan))
    ids = torch.ones(2, 3, dtype=torch.long)
    blank = {"labels": torch.full((2,), -100), "input_ids": ids, "attention_mask": ids}
    _, denominator = trainer.get_batch_samples(iter([blank]), 1, torch.device("cpu"))
    assert denominator == 1
    loss = trainer.compute_loss(trainer.model, blank, num_items_in_batch=denominator)
    assert loss == 0
