# SPDX-License-Identifier: Apache-2.0
"""The batches of an epoch: equal in number, on every process, resumed, and a plain loop's steps."""

import json
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import TrainingArguments

import hftune
from hftune import Recipe, Run
from hftune.data.sampling.row_sampler import Weighted
from hftune.training.build import build_trainer
from hftune.training.callbacks.set_epoch import SetEpoch
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.lr_sweep import sweep
from hftune.training.plan.prepare import prepare
from hftune.training.sampling.seeded_sampler import SeededSampler
from hftune.training.sampling.token_batches import TokenBatches
from tests.stop_at import StopAt
from tests.training.sampling.budgeted import budgeted

LENGTHS = np.clip(np.random.default_rng(0).lognormal(3, 0.8, 3000), 3, 100).astype(np.int64)
BUDGET = 256


class Process(TrainingArguments):
    """Arguments of one of several processes, without starting them."""

    def __init__(self, number: int, of: int, **options: Any) -> None:
        super().__init__(use_cpu=True, **options)
        self._number, self._of = number, of

    @property
    def process_index(self) -> int:
        return self._number

    @property
    def world_size(self) -> int:
        return self._of


def batches(
    number: int = 0, of: int = 1, lengths: Any = LENGTHS, budget: int = BUDGET, **options: Any
) -> TokenBatches:
    arguments = {key: options.pop(key) for key in ("num_train_epochs", "max_steps",
                 "gradient_accumulation_steps") if key in options}  # fmt: skip
    row_sampler = options.pop("row_sampler", None)
    order = SeededSampler(
        len(lengths), options.pop("strategy", "random"), 3, row_sampler=row_sampler
    )
    sizes = np.asarray(lengths)[:, None]
    return TokenBatches(sizes, budget, order, Process(number, of, **arguments), **options)


@pytest.mark.parametrize("padded", [None, "said so"])
@pytest.mark.parametrize("of", [1, 2, 3, 8])
def test_every_process_has_as_much(of: int, padded: str | None) -> None:
    """Each row once an epoch, as many batches for all in every epoch, and nearly equal tokens."""
    parts = [batches(number, of, padded=padded) for number in range(of)]
    assert len({len(part) for part in parts}) == 1
    for epoch in range(3):
        for part in parts:
            part.set_epoch(epoch)
        dealt = [list(part) for part in parts]
        assert [len(mine) for mine in dealt] == [len(parts[0])] * of
        rows = [row for mine in dealt for batch in mine for row in batch]
        assert sorted(row for row in rows if row < len(LENGTHS)) == list(range(len(LENGTHS)))
        assert all(type(row) is int for row in rows)
        tokens = [sum(LENGTHS[row] for batch in mine for row in batch) for mine in dealt]
        assert max(tokens) - min(tokens) < (0.02 if padded is None else 0.1) * max(tokens)
        assert list(parts[-1]) == dealt[-1]


def test_epochs_are_equally_long_where_they_pack_unequally() -> None:
    """Rows of half a batch and more: as many batches as the epoch has that takes the most."""
    lengths = np.random.default_rng(1).integers(1, 101, 2000)
    made = batches(lengths=lengths, budget=100, num_train_epochs=4)
    packed = [len(made._packed(epoch)) for epoch in range(4)]
    assert len(set(packed)) > 1
    assert len(made) == max(packed)
    for epoch in range(4):
        made.set_epoch(epoch)
        found = list(made)
        assert len(found) == len(made)
        assert sorted(chain(*found)) == list(range(2000))


def test_steps_say_how_many_epochs_are_looked_at() -> None:
    """20 steps of 2 batches of a few an epoch: the number of epochs follows from theirs."""
    lengths = np.random.default_rng(1).integers(1, 101, 12)
    options = {"max_steps": 20, "gradient_accumulation_steps": 2}
    made = batches(lengths=lengths, budget=100, **options)
    steps = -(-len(made) // 2)
    epochs = -(-20 // steps)
    assert max(len(made._packed(epoch)) for epoch in range(epochs)) <= len(made)
    longer = made.for_run(Process(0, 1, max_steps=400))
    assert len(longer) >= len(made)


def test_more_processes_than_rows() -> None:
    """One row a batch, and blank rows for the processes that have none."""
    dealt = [list(batches(number, 4, lengths=[50, 60, 70], budget=100)) for number in range(4)]
    rows = [row for mine in dealt for batch in mine for row in batch]
    assert sorted(rows) == [0, 1, 2, 3], "the blank row stands behind the last"


def test_seed_and_epoch_decide() -> None:
    made = batches()
    first = list(made)
    assert list(batches()) == first
    made.set_epoch(1)
    second = list(made)
    assert second != first
    assert {frozenset(batch) for batch in second} != {frozenset(batch) for batch in first}


def test_rows_in_their_order() -> None:
    made = batches(strategy="sequential")
    assert list(chain(*made)) == list(range(len(LENGTHS)))


def test_drawn_rows() -> None:
    """The long half is never drawn: fewer batches, and as many rows in all."""
    weights = np.less(LENGTHS, np.median(LENGTHS)).astype(float)
    made = batches(row_sampler=Weighted(weights))
    found = list(chain(*made))
    assert len(found) == len(LENGTHS)
    assert weights[found].all()
    assert len(made) < 0.7 * len(batches())


def test_what_is_said() -> None:
    """Rows that fill batches to the last token do so."""
    assert str(batches(lengths=[25] * 40, budget=100)) == (
        "an epoch has 10 of at most 100 tokens; 100.0% full, 4.0 rows each"
    )
    assert str(batches(lengths=[1_000], budget=2_000, padded="why")) == (
        "an epoch has 1 of at most 2,000 tokens, padding included (why); 50.0% full, 1.0 rows each"
    )


@pytest.mark.parametrize("rows", ["by number", "by tokens"])
@pytest.mark.parametrize("of", [1, 2])
def test_the_sampler_knows_the_epoch_of_a_resumed_run(of: int, rows: str) -> None:
    """Behind the wrappers of several processes and of skipped batches."""
    number = len(LENGTHS)
    if rows == "by tokens":
        sampler: Any = batches(0, of)
        loader = DataLoader(range(number), batch_sampler=sampler)
    else:
        sampler = SeededSampler(number, "random", 0, multiple=8)
        loader = DataLoader(range(number), batch_size=4, sampler=sampler)
    prepared = prepare_data_loader(loader, num_processes=of, process_index=0, put_on_device=False)
    epochs = SetEpoch()
    epochs.sampler = sampler
    state = type("State", (), {"epoch": 2 + 1 / 3})
    epochs.on_epoch_begin(None, state, None)
    rest = skip_first_batches(prepared, 2)
    rest.set_epoch(2)  # as the Trainer does
    next(iter(rest))
    assert sampler.epoch == 2


def test_run_trainer_and_schedule_agree(make_recipe: Callable[..., Recipe]) -> None:
    training = {"num_train_epochs": 2, "max_steps": -1, "gradient_accumulation_steps": 3}
    plan = prepare(budgeted(make_recipe, training=training))
    assert plan.splits.token_batches is not None
    trainer = build_trainer(plan, load_model(plan))
    micro = len(trainer.get_train_dataloader())
    steps = -(-micro // 3)
    assert micro == len(plan.splits.token_batches) > 6
    assert (plan.training_steps.per_epoch, plan.training_steps.total) == (steps, 2 * steps)
    assert trainer._training_steps() == plan.training_steps
    rows = len(plan.splits.train.dataset)
    assert trainer.get_total_train_batch_size(trainer.args) == round(rows / steps)
    trainer.train()
    assert trainer.state.global_step == 2 * steps
    assert trainer.state.epoch == 2


@pytest.mark.parametrize("task", ["text-classification", "text-generation", "text2text-generation"])
def test_steps_equal_a_plain_loop(task: str, make_recipe: Callable[..., Recipe]) -> None:
    """Each step's gradient is that of its rows in one batch, as torch's own mean has it."""
    training = {
        "optim": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    budget = {"text-classification": 40, "text-generation": 170, "text2text-generation": 60}[task]
    plan = prepare(budgeted(make_recipe, task, budget, training))
    assert plan.splits.token_batches is not None
    model = load_model(plan).model.double()
    plain = load_model(plan).model.double()
    made = list(plan.splits.token_batches)
    assert len({len(batch) for batch in made}) > 1
    collate = plan.objective.task.collator(plan.pretrained.processor, plain)
    for step in range(4):
        rows = made[2 * step] + made[2 * step + 1]
        batch: Any = collate([plan.splits.train.dataset[row] for row in rows])
        labels = batch["labels"]
        logits = plain(**batch).logits
        if task == "text-generation":
            logits, labels = logits[:, :-1], labels[:, 1:]
        classes = logits.shape[-1]
        loss = F.cross_entropy(logits.reshape(-1, classes), labels.flatten(), ignore_index=-100)
        plain.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.sub_(0.5 * parameter.grad)
    trainer = build_trainer(plan, LoadedModel(model))
    trainer.train()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-10, rtol=0)


@pytest.mark.parametrize("data", [{}, {"sampling": "undersample", "padding_free": False}])
def test_a_resumed_run_ends_with_the_same_bits(
    data: dict[str, Any], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Stopped in the second epoch, one step behind a checkpoint; the recipe is the resolved one."""
    budget = 40 if data else 80  # 3 steps an epoch
    training = {
        "max_steps": 6,
        "gradient_accumulation_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "output_dir": str(tmp_path / "whole"),
    }
    whole = hftune.train(budgeted(make_recipe, budget=budget, training=training, data=data))
    training["output_dir"] = str(tmp_path / "stopped")
    recipe = budgeted(make_recipe, budget=budget, training=training, data=data)
    with pytest.raises(KeyboardInterrupt):
        hftune.train(recipe, callbacks=[StopAt(5)])
    stopped = Run(tmp_path / "stopped")
    epoch = json.loads((stopped.checkpoints / "checkpoint-4/trainer_state.json").read_text())
    assert 1 < epoch["epoch"] < 2
    resumed = hftune.train(stopped.recipe, resume=True)
    ends = [load_file(run.model_path / "model.safetensors") for run in (whole, resumed)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    shutil.rmtree(stopped.path)


def test_a_sweep_may_be_longer_than_the_run(make_recipe: Callable[..., Recipe]) -> None:
    plan = prepare(budgeted(make_recipe, budget=40, training={"max_steps": 2}))
    assert len(sweep(plan, start=1e-6, end=1e-3, steps=40).losses) == 40
