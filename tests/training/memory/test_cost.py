# SPDX-License-Identifier: Apache-2.0
"""The estimate of memory against the peak of live tensors of real steps, for each technique."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory import held_by, peak_of_live_tensors
from hftune import Recipe
from hftune.core.registry import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from hftune.losses import LOSSES
from hftune.regularization import REGULARIZATIONS
from hftune.tasks import TASKS
from hftune.training.build import build_trainer
from hftune.training.load_model import load_model
from hftune.training.memory.memory_report import plan_memory
from hftune.training.plan.prepare import prepare
from hftune.training.speedups import without_padding

CLASSIFICATION, WRITING = "text-classification", "text-generation"
#: What the estimate may be, times the peak.
LEAST, MOST = 0.9, 1.6
ROWS = 16
WORDS = ["alpha", "beta", "gamma", "delta", "red", "green", "blue", "one", "two", "three", "four"]
LABELS: dict[str, Callable[[int], Any]] = {
    SINGLE_LABEL: lambda row: str(row % 3),
    MULTI_LABEL: lambda row: ["red", "green"][: 1 + row % 2],
    REGRESSION: lambda row: row + 0.5,
}
#: A value of each key of ``regularization``; batch normalization is in no model of texts.
REGULARIZED: dict[str, Any] = {
    "weight_averaging": "ema",
    "l1": 1e-4,
    "l2": 1e-4,
    "l2_sp": 0.1,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "drop_path": 0.1,
    "drop_connect": 0.1,
    "weight_noise": 0.01,
    "gradient_noise": 0.01,
    "sam": 0.05,
    "adversarial": 0.5,
}
NO_TEXTS = {"freeze_batch_norm"}
#: Config fields of models that drop nothing otherwise.
DROPOUT = {CLASSIFICATION: {"hidden_dropout_prob": 0.1}, WRITING: {"attention_dropout": 0.1}}

Ratio = Callable[..., float]


@pytest.fixture
def ratio(tiny_encoder: Path, tiny_decoder: Path, tmp_path: Path) -> Ratio:
    """Return the estimate of a recipe, divided by the peak of live tensors in two steps."""
    models = {CLASSIFICATION: tiny_encoder, WRITING: tiny_decoder}

    def found(task: str, kind: str = SINGLE_LABEL, **sections: Any) -> float:
        rows = [
            {"text": " ".join(WORDS[(row + 3 * place) % len(WORDS)] for place in range(60))}
            | ({} if task == WRITING else {"label": LABELS[kind](row)})
            for row in range(2 * ROWS)
        ]
        file = tmp_path / "rows.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        config = sections.pop("config", {})
        training = {
            "output_dir": str(tmp_path / "run"), "use_cpu": True, "max_steps": 2,
            "per_device_train_batch_size": ROWS, "save_strategy": "no", "eval_strategy": "no",
        }  # fmt: skip
        given: dict[str, Any] = {
            "task": task,
            "model": {"path": str(models[task]), "config": config},
            "data": {"path": str(file), "validation_size": 0},
            "method": "full",
            "training": training,
        }
        plan = prepare(Recipe(**{**given, **sections}))
        estimate = plan_memory(plan)
        assert estimate is not None
        trainer = build_trainer(plan, load_model(plan))

        def train() -> None:
            with without_padding(plan, trainer):
                trainer.train()

        return estimate.total / peak_of_live_tensors(train, held_by(trainer))

    return found


def loss_cases() -> list[tuple[str, str]]:
    return [
        (name, task)
        for name, row in LOSSES.items()
        for task in (CLASSIFICATION, WRITING)
        if row.suits(TASKS[task])
    ]


@pytest.mark.parametrize(("name", "task"), loss_cases())
def test_a_loss_says_what_it_takes(name: str, task: str, ratio: Ratio) -> None:
    drops = DROPOUT[task] if name == "r_drop" else {}
    kind = LOSSES[name].problem_types[0]
    assert LEAST < ratio(task, kind, loss=name, config=drops) < MOST


@pytest.mark.parametrize(
    ("key", "task"),
    [*((key, CLASSIFICATION) for key in REGULARIZED), ("adversarial", WRITING), ("l2_sp", WRITING)],
)
def test_regularization_says_what_it_takes(key: str, task: str, ratio: Ratio) -> None:
    assert LEAST < ratio(task, regularization={key: REGULARIZED[key]}) < MOST


def test_no_key_is_forgotten() -> None:
    assert REGULARIZED.keys() | NO_TEXTS == REGULARIZATIONS.keys()


@pytest.mark.parametrize(
    ("method", "task"),
    [
        ("lora", CLASSIFICATION),
        ("head_only", CLASSIFICATION),
        ({"name": "diff_pruning", "projection_ratio": 1.0}, CLASSIFICATION),
        ({"name": "diff_pruning", "projection_ratio": 1.0}, WRITING),
    ],
    ids=str,
)
def test_a_method_says_what_it_takes(method: Any, task: str, ratio: Ratio) -> None:
    assert LEAST < ratio(task, method=method) < MOST


def test_gradients_of_several_micro_batches_are_there_with_activations(
    tiny_encoder: Path, ratio: Ratio, tmp_path: Path
) -> None:
    training = {
        "output_dir": str(tmp_path / "run"), "use_cpu": True, "max_steps": 2,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4,
        "save_strategy": "no", "eval_strategy": "no",
    }  # fmt: skip
    assert LEAST < ratio(CLASSIFICATION, training=training) < MOST


@pytest.mark.parametrize("task", [CLASSIFICATION, WRITING])
def test_a_teacher_says_what_it_takes(
    task: str, ratio: Ratio, tiny_decoder: Path, tmp_path: Path, tiny_encoder: Path
) -> None:
    """A running teacher has weights and a pass of its own."""
    teacher = tiny_decoder
    if task == CLASSIFICATION:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        teacher = tmp_path / "teacher"
        names = dict(enumerate("012"))
        AutoModelForSequenceClassification.from_pretrained(
            tiny_encoder, id2label=names, label2id={name: index for index, name in names.items()}
        ).save_pretrained(teacher)
        AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(teacher)
    assert LEAST < ratio(task, distillation={"teacher": str(teacher), "cache": False}) < MOST
