# SPDX-License-Identifier: Apache-2.0
"""A student taught by its own average: what that answers, a run by hand, and an exact resume."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, set_seed

import hftune
from hftune import Recipe, Run
from hftune.distillation.distillation_loss import AlphaWarmup, Distillation
from hftune.distillation.mean_teacher import AverageTeacher
from hftune.losses.loss import ROW
from hftune.training.build import build_trainer, rows_of
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.prepare import prepare
from tests.stop_at import StopAt

Make = Callable[..., Recipe]
DECAY, ALPHA, TEMPERATURE, RATE = 0.8, 0.4, 2.0, 0.5
EMA = {"weight_averaging": {"name": "ema", "decay": DECAY}}
OWN = {"teacher": "weight_averaging", "alpha": ALPHA, "temperature": TEMPERATURE}
#: Full batches and plain steps, which a loop of a few lines can repeat.
PLAIN = {
    "max_steps": 4, "per_device_train_batch_size": 60, "optim": "sgd", "learning_rate": RATE,
    "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 0,
    "eval_strategy": "no", "save_strategy": "no",
}  # fmt: skip


def changed(average: list[torch.Tensor]) -> list[torch.Tensor]:
    return [value + 0.1 * torch.randn(value.shape) for value in average]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_answers_as_a_copy_that_holds_the_average(
    method: str, make_recipe: Make, tiny_encoder: Path
) -> None:
    """Dropout is off, a frozen module stays so, and the student keeps every bit."""
    model_section = {"path": str(tiny_encoder), "config": {"hidden_dropout_prob": 0.5}}
    recipe = make_recipe(model=model_section, method=method, regularization=EMA, distillation=OWN)
    plan = prepare(recipe)
    model = load_model(plan).model
    trainer = build_trainer(plan, LoadedModel(model))
    assert isinstance(trainer.loss, Distillation)
    teacher = trainer.loss.teacher
    assert isinstance(teacher, AverageTeacher)
    averaging: Any = trainer.averaging
    rows = rows_of(plan)
    batch: Any = trainer.data_collator([rows[index] for index in range(6)])
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, nn.LayerNorm))
    frozen.eval()
    before = copy.deepcopy(model.state_dict())

    def said(copied: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            given = {k: v for k, v in batch.items() if k not in ("labels", ROW)}
            logits: torch.Tensor = copied.eval()(**given).logits
            return logits

    def answer() -> torch.Tensor:
        (logits,) = teacher.answer(batch).logits  # type: ignore[misc]
        return logits

    torch.testing.assert_close(answer(), said(copy.deepcopy(model)))  # no average yet
    set_seed(0)
    averaging.average.n_averaged += 1
    for value, new in zip(averaging.averages(), changed(averaging.averages()), strict=True):
        value.data.copy_(new)
    holder = copy.deepcopy(model)
    trains = [p for p in holder.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter, value in zip(trains, averaging.averages(), strict=True):
            parameter.copy_(value)
    torch.testing.assert_close(answer(), said(holder))
    assert (answer() - said(copy.deepcopy(model))).abs().max() > 1e-3
    assert model.training
    assert not frozen.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("warmup", [0, 3])
def test_a_run_is_that_of_a_loop_by_hand(
    warmup: int, make_recipe: Make, tiny_encoder: Path
) -> None:
    recipe = make_recipe(
        data={"path": str(make_recipe().data.path), "validation_size": 0},
        regularization=EMA,
        distillation={**OWN, "warmup_steps": warmup},
        training=PLAIN,
    )
    plan = prepare(recipe)
    rows = rows_of(plan)
    model: Any = load_model(plan).model
    collate = plan.objective.task.collator(plan.pretrained.processor)
    batch = dict(collate([rows[index] for index in range(len(rows))]))
    labels = batch.pop("labels")
    batch.pop(ROW)
    teacher = copy.deepcopy(model).eval()
    for step in range(4):
        logits = model(**batch).logits
        with torch.no_grad():
            target = (teacher(**batch).logits / TEMPERATURE).softmax(-1)
        shares = (logits / TEMPERATURE).log_softmax(-1)
        apart = TEMPERATURE**2 * F.kl_div(shares, target, reduction="batchmean")
        alpha = ALPHA * (min(1.0, step / warmup) if warmup else 1.0)
        loss = alpha * apart + (1 - alpha) * F.cross_entropy(logits, labels)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter, average in zip(model.parameters(), teacher.parameters(), strict=True):
                parameter.sub_(parameter.grad, alpha=RATE)
                kept = 0.0 if step == 0 else DECAY  # the first step's weights begin the average
                average.copy_(kept * average + (1 - kept) * parameter)
    run = hftune.train(recipe)
    saved = AutoModelForSequenceClassification.from_pretrained(run.model_path)
    for name, value in teacher.state_dict().items():
        torch.testing.assert_close(saved.state_dict()[name], value, atol=2e-6, rtol=0)


def test_a_resumed_run_has_the_same_teacher(make_recipe: Make, tmp_path: Path) -> None:
    def recipe(name: str) -> Recipe:
        training = {"output_dir": str(tmp_path / name), "max_steps": 6, "learning_rate": 1e-2,
                    "eval_strategy": "no", "save_strategy": "steps", "save_steps": 2}  # fmt: skip
        return make_recipe(
            regularization=EMA, distillation={**OWN, "warmup_steps": 0.9}, training=training
        )

    whole = hftune.train(recipe("whole"))
    with pytest.raises(KeyboardInterrupt):
        hftune.train(recipe("stopped"), callbacks=[StopAt(3)])
    resumed = hftune.train(Run(tmp_path / "stopped").recipe, resume=True)
    weights = load_file(whole.model_path / "model.safetensors")
    for name, value in load_file(resumed.model_path / "model.safetensors").items():
        assert torch.equal(value, weights[name]), name


def test_it_teaches_rows_without_labels(make_recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text(
        "".join(json.dumps({"text": f"beta {word}"}) + "\n" for word in ("one", "two", "three"))
    )
    plan = prepare(
        make_recipe(
            data={
                "path": str(make_recipe().data.path),
                "unlabelled": str(tmp_path / "more.jsonl"),
            },
            regularization=EMA,
            distillation=OWN,
        )
    )
    rows = rows_of(plan)
    assert len(rows) == len(plan.splits.train.dataset) + 3
    assert rows["labels"][:][-3:] == [-100] * 3


def test_a_look_for_a_rate_has_no_average(make_recipe: Make) -> None:
    recipe = make_recipe(distillation=OWN, regularization=EMA)
    assert hftune.lr_find(recipe, steps=12, start=1e-5, end=1e-2).suggestion > 0


def test_alpha_grows(make_recipe: Make) -> None:
    plan = prepare(make_recipe(distillation={**OWN, "warmup_steps": 0.5}, regularization=EMA))
    (warmup,) = plan.objective.loss.callbacks(8)
    assert isinstance(warmup, AlphaWarmup)
    shares = []
    for step in range(8):
        warmup.on_step_begin(None, type("State", (), {"global_step": step}), None)
        shares.append(warmup.loss.share)
    assert shares == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
