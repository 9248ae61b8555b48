# SPDX-License-Identifier: Apache-2.0
"""From the recipe to the rows of an epoch: classes, columns, processes, resume, bad input."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

import hftune
from hftune import HftuneError, Recipe, Run
from hftune.data.sampling.curriculum import Curriculum
from hftune.data.sampling.row_sampler import RowSampler, balanced, oversample
from hftune.optimization.schedule_factors import TrainingSteps
from hftune.training.build import build_trainer
from hftune.training.load_model import load_model
from hftune.training.plan.prepare import prepare
from hftune.training.sampling.seeded_sampler import SeededSampler
from tests.stop_at import StopAt

CLASSES = np.array([0] * 30 + [1] * 20 + [2] * 10)


@pytest.fixture
def scored_file(tmp_path: Path, labelled_rows: list[dict]) -> Path:
    """The labelled rows as csv, whose cells are texts, with a number each."""
    lines = ["text,label,score"]
    lines += [
        f"{row['text']},{row['label']},{index % 3}" for index, row in enumerate(labelled_rows)
    ]
    path = tmp_path / "scored.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def plan_of(make_recipe: Callable[..., Recipe], data: dict[str, Any], **sections: Any) -> Any:
    path = make_recipe().data.path
    return prepare(make_recipe(data={"path": path, "validation_size": 0, **data}, **sections))


@pytest.mark.parametrize(
    ("sampling", "size", "counts"),
    [("balanced", 60, [20, 20, 20]), ("oversample", 90, [30] * 3), ("undersample", 30, [10] * 3)],
)
def test_the_run_is_as_long_as_what_is_drawn(
    sampling: str, size: int, counts: list[int], make_recipe: Callable[..., Recipe]
) -> None:
    """Trainer, schedule and method agree on the steps, and the loss on the classes."""
    training = {"num_train_epochs": 2, "max_steps": -1, "gradient_accumulation_steps": 2}
    plan = plan_of(make_recipe, {"sampling": sampling}, training=training)
    batches = math.ceil(size / 8)
    steps = math.ceil(batches / 2)
    assert (plan.training_steps.per_epoch, plan.training_steps.total) == (steps, 2 * steps)
    np.testing.assert_allclose(plan.objective.loss.counts, counts)
    assert sorted(plan.class_counts()) == [10, 20, 30], "data.json tells what there is"
    trainer = build_trainer(plan, load_model(plan))
    assert len(trainer.get_train_dataloader()) == batches
    assert trainer._training_steps() == plan.training_steps
    if sampling != "balanced":
        labels = plan.splits.train.dataset["labels"]
        drawn = [labels[index] for index in trainer._get_train_sampler()]
        assert np.bincount(drawn).tolist() == counts


def test_weights_of_a_column(make_recipe: Callable[..., Recipe], scored_file: Path) -> None:
    """Rows without weight stay out, also beside a validation part and a limit."""
    data = {
        "path": str(scored_file),
        "sampling": {"name": "weighted", "column": "score"},
        "validation_size": 0.2,
        "max_train_samples": 40,
    }
    plan = prepare(make_recipe(data=data))
    assert "drawn_by" not in plan.splits.examples.train.column_names
    written: dict[str, set[str]] = {}
    for line in scored_file.read_text().splitlines()[1:]:
        written.setdefault(line.split(",")[0], set()).add(line[-1])
    for text, weight in zip(
        plan.splits.examples.train["text"], plan.splits.examples.drawn_by, strict=True
    ):
        assert f"{weight:.0f}" in written[text], "each weight stays with its row"
    weights = plan.splits.row_sampler.expected()
    assert len(weights) == 40
    assert 0 < np.count_nonzero(weights) < 40
    drawn = list(SeededSampler(40, "random", 0, row_sampler=plan.splits.row_sampler))
    assert set(drawn) <= set(np.flatnonzero(weights))


@pytest.mark.parametrize("name", ["length", "rarity", "column"])
def test_what_makes_a_row_hard(
    name: str, make_recipe: Callable[..., Recipe], scored_file: Path
) -> None:
    choice = {"name": name, "column": "score"} if name == "column" else name
    plan = plan_of(make_recipe, {"path": str(scored_file), "curriculum": choice})
    lengths = np.array([len(ids) for ids in plan.splits.train.dataset["input_ids"]])
    difficulty = plan.splits.examples.drawn_by if name == "column" else lengths
    order = np.array(plan.splits.row_sampler.order)
    if name == "rarity":  # the longer, the less likely, but not in that order alone
        assert np.corrcoef(difficulty[order], np.arange(60))[0, 1] > 0.8
    else:
        assert np.all(np.diff(difficulty[order]) >= 0)


@pytest.mark.parametrize("draw", [balanced(CLASSES), oversample(CLASSES),
                                  Curriculum(np.arange(60.0))])  # fmt: skip
def test_two_processes_share_what_one_would_see(draw: RowSampler) -> None:
    """Accelerate deals the batches out: together they are those of one process, none twice."""
    batch, length = 4, TrainingSteps(30, 0, 8)
    whole = SeededSampler(60, "random", 0, row_sampler=draw, group=8, training_steps=length)
    padded = SeededSampler(
        60,
        "random",
        0,
        multiple=2 * batch,
        row_sampler=draw,
        group=8,
        training_steps=TrainingSteps(30, 0, 8),
    )
    shards = [
        list(BatchSamplerShard(BatchSampler(padded, batch, drop_last=False), 2, process))
        for process in range(2)
    ]
    together = [row for pair in zip(*shards, strict=True) for rows in pair for row in rows]
    assert together[: draw.size] == list(whole)
    assert set(together[draw.size :]) <= {60}, "the rest is blank rows"


def test_group_by_length_orders_what_was_drawn() -> None:
    lengths = [1 + index * 37 % 60 for index in range(60)]
    draw = oversample(CLASSES)
    options: dict[str, Any] = {"lengths": lengths, "group": 5, "row_sampler": draw}
    grouped = list(SeededSampler(60, "group_by_length", 0, **options))
    mixed = list(SeededSampler(60, "random", 0, **options))
    assert sorted(grouped) == sorted(mixed)
    spread, before = (
        np.mean([np.ptp([lengths[i] for i in order[k : k + 5]]) for k in range(5, 90, 5)])
        for order in (grouped, mixed)
    )
    assert spread < before / 2


@pytest.mark.parametrize("data", [{"sampling": "oversample"}, {"curriculum": "length"}])
def test_a_resumed_run_goes_on_in_the_middle_of_an_epoch(
    data: dict, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    training = {
        "max_steps": 9,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 3,
    }
    given = {"path": make_recipe().data.path, "max_train_samples": 30, **data}
    whole = hftune.train(make_recipe(training=training, data=given))
    training["output_dir"] = str(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        hftune.train(make_recipe(training=training, data=given), callbacks=[StopAt(5)])
    resumed = hftune.train(Run(tmp_path / "stopped").recipe, resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    losses = [
        [json.loads(line).get("loss") for line in (run.path / "log.jsonl").read_text().splitlines()]
        for run in (whole, resumed)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("cell", "data", "says"),
    [
        ("-1", {"sampling": {"name": "weighted", "column": "score"}}, "row 60 has a negative we"),
        ("", {"sampling": {"name": "weighted", "column": "score"}}, "row 60 is no finite number"),
        ("nan", {"curriculum": {"name": "column", "column": "score"}}, "row 60 is no finite numb"),
        ("0", {"sampling": {"name": "weighted", "column": "scor"}}, "no column 'scor'.*score"),
        ("0", {"curriculum": {"name": "column", "column": "grade"}}, "no column 'grade'"),
        ("0", {"sampling": {"name": "weighted", "column": "score"}}, "all training rows are zero"),
        ("0", {"curriculum": {"name": "column", "column": "score"}}, "equally hard by column"),
        ("0", {"sampling": "balanced", "label_separator": "|"}, "no single label"),
    ],
)
def test_bad_input(
    cell: str, data: dict, says: str, make_recipe: Callable[..., Recipe], scored_file: Path
) -> None:
    lines = scored_file.read_text().splitlines()
    same = [line.rsplit(",", 1)[0] + ",0" for line in lines[1:-1]]
    last = lines[-1].rsplit(",", 1)[0] + f",{cell}"
    scored_file.write_text("\n".join([lines[0], *same, last]) + "\n")
    whole = {"path": str(scored_file), "validation_size": 0, **data}
    with pytest.raises(HftuneError, match=says):
        prepare(make_recipe(data=whole))
