# SPDX-License-Identifier: Apache-2.0
"""Write a first recipe for a user's own rows, with a comment on each key."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from ruamel.yaml import YAML

from hftune.methods import method_row
from hftune.recipe.defaults import learning_rate
from hftune.recipe.schema_file import EDITOR_LINE
from hftune.tasks import TASKS

COMMENT_COLUMN = 38
#: Below this ratio of the commonest to the rarest label, class weights change little.
IMBALANCED = 3
#: Small data sets get more epochs, so that training sees about this number of rows.
ROWS_SEEN = 5000
MOST_EPOCHS = 10
PLAIN = re.compile(r"[A-Za-z_./][\w./:@+-]*(?<!:)")


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The content of a first recipe.

    Attributes:
        file: Path of the recipe, as commands name it.
        schema: Path of the recipe's schema, relative to the recipe.
        task: The task.
        model: Path of the model.
        method: Name of the method.
        data: Path of the rows.
        rows: Number of training rows.
        columns: Column by role.
        reasons: Reason for the choice of a column, by role.
        labels: Number of rows by label, if each row has one label.
        has_validation: Whether the data have a validation part.

    Example:
        >>> draft = Draft(file="a.yaml", schema="schema.json", task="text-classification",
        ...               model="demo:minilm", method="lora", data="a.csv", rows=1000,
        ...               columns={"text": "body"}, labels={"no": 900, "yes": 100})
        >>> draft.imbalance, draft.epochs
        (9.0, 5)
    """

    file: str
    schema: str
    task: str
    model: str
    method: str
    data: str
    rows: int
    columns: dict[str, str]
    reasons: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    has_validation: bool = False

    @property
    def imbalance(self) -> float:
        """Ratio of the rows of the commonest label to those of the rarest; 1 without labels."""
        return max(self.labels.values()) / min(self.labels.values()) if self.labels else 1.0

    @property
    def epochs(self) -> int:
        """Number of epochs: 3 for many rows, more for few rows."""
        return min(max(3, round(ROWS_SEEN / self.rows)), MOST_EPOCHS)


def write_recipe(draft: Draft) -> str:
    """Return the recipe as YAML, ready for ``hftune check`` and ``hftune train``."""
    return "\n".join([*_header(draft), *_model(draft), *_data(draft), *_method(draft),
                      *_loss(draft), *_training(draft)]) + "\n"  # fmt: skip


def _header(draft: Draft) -> Iterator[str]:
    yield f"{EDITOR_LINE}{draft.schema}"
    yield f"# hftune check {shlex.quote(draft.file)}"
    yield f"# hftune train {shlex.quote(draft.file)}"
    yield "#"
    yield f"# A first recipe for {draft.rows:,} rows; every key is in the docs under The recipe."


def _model(draft: Draft) -> Iterator[str]:
    row = TASKS[draft.task]
    yield _line("task", draft.task, row.summary[0].lower() + row.summary[1:].removesuffix("."))
    hint = row.model_hint if draft.model == row.demo_model else "Hub id or folder"
    yield _line("model", draft.model, hint)


def _data(draft: Draft) -> Iterator[str]:
    yield "data:"
    yield _line("  path", draft.data, "seen from where the command runs")
    yield _note("  columns:", "role: column")
    for role, column in draft.columns.items():
        yield _line(f"    {role}", column, draft.reasons.get(role, ""))
    if draft.has_validation:
        yield _note("  # validation: other.csv", "in place of the validation part of the data")
    else:
        yield _line("  validation_size", 0.1, "share held out to measure on, equal texts together")
        yield _note("  # validation: held_out.csv", "rows of your own to measure on, in its place")
    yield _note("  # max_length: 256", "tokens a row may have; hftune check counts what is cut")


def _method(draft: Draft) -> Iterator[str]:
    yield "method:"
    yield _line("  name", draft.method, "what trains; others: hftune list methods")
    for key, value, comment in method_row(draft.method).starter_options:
        yield _line(f"  {key}", value, comment)


def _loss(draft: Draft) -> Iterator[str]:
    if not draft.labels:
        return
    active = draft.imbalance >= IMBALANCED
    mark = "" if active else "# "
    if active:
        yield f"# The commonest label has {draft.imbalance:.3g} times the rows of the rarest."
    yield "# With balanced weights all labels count alike, as in the macro F1 that picks the best"
    yield "# model; accuracy may fall."
    yield f"{mark}loss:"
    yield f"{mark}  name: cross_entropy"
    yield f"{mark}  class_weights: balanced"


def _training(draft: Draft) -> Iterator[str]:
    batch, _ = TASKS[draft.task].batch_sizes
    rate = learning_rate(draft.task, draft.method)
    yield _note("training:", "fields of transformers.TrainingArguments")
    yield _line("  learning_rate", rate, "the first to tune: try half and double")
    passes = "passes over the rows; more, as they are few" if draft.epochs > 3 else "passes"
    yield _line("  num_train_epochs", draft.epochs, f"{passes}; the best one is kept")
    yield _line("  per_device_train_batch_size", batch, "rows at a time; halve it if memory fails")
    yield _note("  # gradient_accumulation_steps: 2", "the same gradient with half of the rows")


def _line(key: str, value: object, comment: str) -> str:
    return _note(f"{key}: {_scalar(value)}", comment)


def _note(text: str, comment: str) -> str:
    return f"{text:<{COMMENT_COLUMN}} # {comment}" if comment else text


def _scalar(value: object) -> str:
    """Return a value as YAML 1.2, quoted like JSON unless it is a number or a plain word."""
    if isinstance(value, float):
        return f"{value:.0e}".replace("e-0", "e-") if value < 1e-2 else f"{value:g}"
    plain = isinstance(value, str) and PLAIN.fullmatch(value) is not None
    if plain and YAML(typ="safe", pure=True).load(f"key: {value}") == {"key": value}:
        return str(value)
    return json.dumps(value, ensure_ascii=False)  # texts such as null, true and .5 need quotes
