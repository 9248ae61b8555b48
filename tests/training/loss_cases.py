# SPDX-License-Identifier: Apache-2.0
"""The combinations of the loss contract, and the gradient of one group of rows, split as asked.

Gradients go through the Trainer's own steps: ``get_batch_samples`` counts, ``training_step`` calls
``compute_loss``, which divides. One Trainer serves all losses of a kind of labels.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hftune import Recipe
from hftune.distillation.distillation_loss import Distillation
from hftune.distillation.teaching import RunningTeacher
from hftune.losses import LOSSES
from hftune.losses.loss import LabelStats, Loss
from hftune.tasks import TASKS
from hftune.tasks.task import blank_row
from hftune.training.build import build_trainer, rows_of
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.plan.plan import Plan
from hftune.training.plan.prepare import prepare
from hftune.training.trainer import HftuneTrainer

CLASSIFICATION = "text-classification"
SINGLE_LABEL = "single_label_classification"
#: Options of a loss -> values to try; each with each.
OPTIONS: dict[str, Sequence[Any]] = {
    "class_weights": (None, "balanced"),
    "pos_weight": (None, "balanced"),
    "logit_adjustment": (None, 1.0),
}
ONE_LABEL, SEVERAL_LABELS = ("class_weights", "logit_adjustment"), ("pos_weight",)
#: Rows of the group in whose gradients the splits are compared; one of them is blank.
GROUP, BLANK = 8, 5
#: Of those that have a teacher so many have no label.
BARE = 2
#: Kinds of labels with a teacher beside them are named so.
TAUGHT = ", taught"
INSIDE = {"hidden_states": {1: 1, 2: 2}, "attentions": {1: 0}, "attentions_weight": 0.3}


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss with its options, for a kind of labels: a problem type, or a task."""

    kind: str
    name: str
    options: tuple[tuple[str, Any], ...]
    smoothing: float

    def __str__(self) -> str:
        said = [f"{key}={value}" for key, value in self.options if value is not None]
        return ", ".join([self.kind, self.name, *said, f"smoothing {self.smoothing}"])

    def build(self, stats: LabelStats) -> Loss:
        """Return the loss, fitted."""
        loss: Loss = LOSSES[self.name].resolve()(**dict(self.options))
        loss.fit(dataclasses.replace(stats, label_smoothing=self.smoothing))
        return loss


def all_cases() -> list[Case]:
    """Return every loss with every task and option that go together; row comparers are exempt."""
    alone = [
        Case(kind, name, options, smoothing)
        for name, row in LOSSES.items()
        if not row.compares_rows
        for kind in _kinds(name)
        for options in _options(name, kind)
        for smoothing in ((0.0, 0.1) if row.smooths else (0.0,))
    ]
    # Beside a teacher each with its last options, all of them.
    last = {(case.kind, case.name): case for case in alone if not LOSSES[case.name].own_passes}
    return alone + [dataclasses.replace(c, kind=c.kind + TAUGHT) for c in last.values()]


def _kinds(name: str) -> list[str]:
    row = LOSSES[name]
    types = row.problem_types if row.suits(TASKS[CLASSIFICATION]) else ()
    others = [task for task in TASKS if task != CLASSIFICATION and row.suits(TASKS[task])]
    return [*types, *(others if SINGLE_LABEL in row.problem_types else ())]


def _options(name: str, kind: str) -> Iterator[tuple[tuple[str, Any], ...]]:
    fields = {field.name for field in dataclasses.fields(LOSSES[name].resolve_options())}
    suited = SEVERAL_LABELS if kind == "multi_label_classification" else ONE_LABEL
    tried = [option for option in suited if option in fields]
    for values in itertools.product(*(OPTIONS[option] for option in tried)):
        yield tuple(zip(tried, values, strict=True))


def kind_recipes(
    folder: Path, models: dict[str, Path], files: dict[str, Path]
) -> dict[str, dict[str, Any]]:
    """Return kind -> sections of a recipe, with rows of ragged lengths.

    Args:
        folder: Where rows and runs go.
        models: Task -> model.
        files: Task -> rows.
    """
    rows = [json.loads(line) for line in files[CLASSIFICATION].read_text().splitlines()]
    labels: dict[str, Any] = {
        SINGLE_LABEL: [("red", "green", "blue").index(row["label"]) for row in rows],
        "multi_label_classification": [row["text"].split()[:2] for row in rows],
        "regression": [len(row["text"]) / 10 for row in rows],
    }
    written = {task: files[task] for task in TASKS if task != CLASSIFICATION}
    for kind, column in labels.items():
        lines = [
            json.dumps({"text": row["text"], "label": list(dict.fromkeys(label))}
                       if isinstance(label, list) else {"text": row["text"], "label": label})
            for row, label in zip(rows, column, strict=True)
        ]  # fmt: skip
        written[kind] = folder / f"{kind}.jsonl"
        written[kind].write_text("\n".join(lines))
    alone = {
        kind: {
            "task": kind if kind in TASKS else CLASSIFICATION,
            "model": {
                "path": str(models[kind if kind in TASKS else CLASSIFICATION]),
                "config": {} if kind in TASKS else {"problem_type": kind},
            },
            "data": {"path": str(path), "validation_size": 0, "max_length": 24},
            "method": "full",
            "training": {"output_dir": str(folder / kind), "use_cpu": True, "max_steps": 1},
        }
        for kind, path in written.items()
    }
    return alone | {
        kind + TAUGHT: _taught(kind, sections, folder) for kind, sections in alone.items()
    }


def _taught(kind: str, sections: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the recipe with a teacher: kept or running, of answers or of layers, too."""
    plan = prepare(Recipe(**sections))
    place = folder / f"{kind}-teacher"
    torch.manual_seed(1)
    if kind == "token-classification":  # its layers are matched through layers between them
        plan.pretrained.config.hidden_size *= 2
    teacher = plan.objective.task.auto_model.from_config(plan.pretrained.config)
    teacher.save_pretrained(place)
    plan.pretrained.processor.save_pretrained(place)
    data, model = dict(sections["data"]), dict(sections["model"])
    if sections["task"] == CLASSIFICATION:  # some rows have no label
        rows = [json.loads(line) for line in Path(data["path"]).read_text().splitlines()]
        bare = [{**row, "label": None} if n % 5 == 4 else row for n, row in enumerate(rows)]
        data["path"] = str(folder / f"{kind}-bare.jsonl")
        Path(data["path"]).write_text("\n".join(map(json.dumps, bare)))
    inside = kind in (SINGLE_LABEL, "token-classification")
    if inside:
        model["attn_implementation"] = "eager"
    learnt: dict[str, Any] = INSIDE if inside else {}
    learnt = {"top_k": 7} if kind == "text-generation" else learnt
    return {
        **sections,
        "model": model,
        "data": data,
        "distillation": {"teacher": str(place), "alpha": 0.6, **learnt},
    }


class Bench:
    """One Trainer in float64 for all losses of a kind of labels.

    Args:
        sections: Of a recipe without a loss.
    """

    def __init__(self, sections: dict[str, Any]) -> None:
        self.plan: Plan = prepare(Recipe(**sections))
        self.model: nn.Module = load_model(self.plan).model.double()
        self.trainer: HftuneTrainer = build_trainer(self.plan, LoadedModel(self.model))
        beside = self.trainer.auxiliary_layers
        self.trained = nn.ModuleList([self.model] + ([] if beside is None else [beside.layers]))
        self.trained.double()
        every = rows_of(self.plan)
        rows = [every[3 * index] for index in range(GROUP)]  # of several classes
        if self.plan.splits.unlabelled is not None:
            rows[-BARE:] = [every[len(every) - 1 - index] for index in range(BARE)]
        if isinstance(self.trainer.loss, Distillation):
            teacher = self.trainer.loss.teacher
            for model in teacher.models if isinstance(teacher, RunningTeacher) else ():
                model.double()
        rows[BLANK] = blank_row(rows[BLANK])
        self.rows = rows
        self.taught = self.trainer.loss  # gradient() puts others in its place

    def loss(self, case: Case) -> Loss:
        """Return the case's loss, fitted to all of the rows."""
        plan, own = self.plan, self.taught
        stats = LabelStats(
            classes=plan.objective.task.classes(plan.pretrained.processor, plan.num_classes()),
            counts=plan.class_counts().tolist(),
            rows=plan.splits.train.num_rows,
            causal=plan.objective.task.causal,
            problem_type=plan.objective.task.problem_type,
        )
        loss = case.build(stats)
        if not isinstance(own, Distillation):
            return loss
        taught = Distillation(loss, own.section, own.teacher)
        taught.projections = own.projections
        taught.fit(stats)
        return taught

    def gradient(self, loss: Loss, sizes: Sequence[int]) -> Tensor:
        """Return the gradient of one optimizer step over micro-batches of so many rows."""
        ends = list(itertools.accumulate(sizes))
        return self.of_batches(
            loss, [self.rows[end - n : end] for end, n in zip(ends, sizes, strict=True)]
        )

    def of_batches(self, loss: Loss, batches: Sequence[Sequence[Any]]) -> Tensor:
        """Return the same over micro-batches of given rows."""
        trainer = self.trainer
        trainer.loss = loss
        trainer.current_gradient_accumulation_steps = len(batches)
        self.trained.zero_grad()
        collated = iter([trainer.data_collator(list(rows)) for rows in batches])
        device = torch.device("cpu")
        group, denominator = trainer.get_batch_samples(collated, len(batches), device)
        with two_draws(self.model):
            for batch in group:
                trainer.training_step(self.model, batch, denominator)
        found = [p.grad.flatten() for p in self.trained.parameters() if p.grad is not None]
        return torch.cat(found)


@contextmanager
def two_draws(model: Any) -> Iterator[None]:
    """Let the two copies of a doubled batch differ, as dropout would, but the same every time."""

    def draw(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        (ids,) = inputs
        half = len(ids) // 2
        if len(ids) % 2 or not torch.equal(ids[:half], ids[half:]):
            return output
        kept = torch.arange(output.shape[-1]) % 5 != 0
        return torch.cat([output[:half], output[half:] * kept])

    handle = model.get_input_embeddings().register_forward_hook(draw)
    try:
        yield
    finally:
        handle.remove()
