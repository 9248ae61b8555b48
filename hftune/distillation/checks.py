# SPDX-License-Identifier: Apache-2.0
"""Check that teachers fit a student, before weights are loaded: labels, tokens and layers."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from hftune.core.errors import HftuneError
from hftune.data.same import plain
from hftune.data.section import DataSection
from hftune.distillation.section import DistillationSection
from hftune.distillation.teachers import KEY, NamedTeacher
from hftune.models.structure import num_positions
from hftune.optimization.optimizers import OPTIMIZERS
from hftune.tasks import TASKS
from hftune.tasks.task import Task

SHOWN = 10
#: Rows whose texts both tokenizers must encode equally.
COMPARED = 50
TEXTS = ("text", "text_pair", "prompt", "completion", "target", "tokens", "messages")


def labels_of_teacher(task: type[Task], teachers: Sequence[NamedTeacher]) -> dict[str, Any]:
    """Return the options of a task that come from its first teacher; the recipe overrides them.

    So the student also learns classes without a labelled row.
    """
    if not teachers or TASKS[task.name].writes:
        return {}
    first = teachers[0]
    known = {"problem_type": first.problem_type, "label_names": list(first.label_names)}
    takes = signature(task).parameters
    return {name: value for name, value in known.items() if value and name in takes}


def check_rows(
    task: Task, rows: Dataset, teachers: Sequence[NamedTeacher], data: DataSection
) -> None:
    """Raise :class:`HftuneError` if the training rows have a label that the teacher does not know.

    The student took its labels from the teacher, unless the recipe lists them.
    """
    if not (teachers and task.label_names) or data.label_names:
        return
    if unknown := sorted(task.occurring_labels(rows) - set(task.label_names)):
        raise HftuneError(
            f"{KEY}: {teachers[0].path}: it has other labels than the rows: it does not know "
            f"{', '.join(unknown[:SHOWN])}",
            hint=f"its labels: {', '.join(task.label_names[:SHOWN])}",
        )


def check_labels(task: Task, teachers: Sequence[NamedTeacher], data: DataSection) -> None:
    """Raise :class:`HftuneError` if a teacher has other labels than the student."""
    for teacher in teachers:
        said = teacher.problem_type
        if said is not None and task.problem_type is not None and said != task.problem_type:
            raise HftuneError(f"{KEY}: {teacher.path}: {said}, and this is {task.problem_type}")
        if not task.label_names:
            continue
        mine, theirs = list(task.label_names), teacher.label_names
        if not theirs:
            numbered = data.label_names or mine == [str(index) for index in range(len(mine))]
            if teacher.config.num_labels != len(mine) or not numbered:
                raise HftuneError(
                    f"{KEY}: {teacher.path}: its {teacher.config.num_labels} labels have no names",
                    hint="list the labels in its order: data.label_names, or set its id2label",
                )
        elif set(mine) != set(theirs):
            only = [name for name in mine if name not in theirs]
            missing = [name for name in theirs if name not in mine]
            which = f"does not know {', '.join(only[:SHOWN])}" if only else (
                f"also knows {', '.join(missing[:SHOWN])}")  # fmt: skip
            raise HftuneError(
                f"{KEY}: {teacher.path}: it has other labels than the student: it {which}",
                hint=f"its labels: {', '.join(theirs[:SHOWN])}; take a teacher of the same labels"
                + ("" if only else ", or list all of them in data.label_names"),
            )


def check_tokens(
    teachers: Sequence[NamedTeacher],
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    rows: Dataset,
    longest: int,
) -> None:
    """Raise :class:`HftuneError` if a teacher would read or generate other tokens.

    Args:
        teachers: The teachers.
        tokenizer: The student's.
        config: The student's.
        rows: Selected rows; both tokenizers must encode the first of them equally.
        longest: Number of tokens in the longest row.
    """
    names = [name for name in TEXTS if name in rows.column_names]
    texts = [
        plain(row[name]) for row in rows.select(range(min(COMPARED, len(rows)))) for name in names
    ]
    for teacher in teachers:
        if teacher.tokenizer.get_vocab() != tokenizer.get_vocab():
            raise HftuneError(
                f"{KEY}: {teacher.path}: its tokenizer has another vocabulary than the student's",
                hint="a teacher reads the student's tokens: take one of the same family",
            )
        for text in texts:
            if teacher.tokenizer(text)["input_ids"] != tokenizer(text)["input_ids"]:
                raise HftuneError(
                    f"{KEY}: {teacher.path}: its tokenizer cuts a text otherwise: {text!r:.60}",
                    hint="a teacher reads the student's tokens: take one of the same family",
                )
        _check_pairs(teacher, tokenizer, rows)
        _check_positions(teacher, config, longest)


def _check_pairs(teacher: NamedTeacher, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> None:
    pairs, types = "text_pair" in rows.column_names, "token_type_ids"
    mine, theirs = (one.model_input_names for one in (tokenizer, teacher.tokenizer))
    if pairs and types in theirs and types not in mine:
        raise HftuneError(
            f"{KEY}: {teacher.path}: it tells the texts of a pair apart by {types}, and the "
            "student's tokenizer gives none"
        )


def _check_positions(teacher: NamedTeacher, config: PreTrainedConfig, longest: int) -> None:
    positions = num_positions(teacher.config)
    if positions is not None and positions < longest:
        raise HftuneError(
            f"{KEY}: {teacher.path}: rows have up to {longest} tokens, and it takes {positions}",
            hint=f"data.max_length: {positions}",
        )
    for field in ("decoder_start_token_id", "pad_token_id"):
        if config.is_encoder_decoder and getattr(teacher.config, field) != getattr(config, field):
            raise HftuneError(f"{KEY}: {teacher.path}: it has another {field}")


def check_layers(
    section: DistillationSection | None,
    teachers: Sequence[NamedTeacher],
    student: PreTrainedConfig,
    optimizer: str,
) -> None:
    """Raise :class:`HftuneError` if mapped layers do not exist or do not fit.

    Args:
        section: Maps layers of the student to layers of the teacher.
        teachers: The teachers.
        student: The student's config.
        optimizer: Name of the optimizer, which may have to train a projection between widths.
    """
    if section is None or not section.looks_inside:
        return
    mine, theirs = student.get_text_config(), teachers[0].config.get_text_config()
    for key, first, size in (
        ("hidden_states", 0, "hidden_size"),
        ("attentions", 1, "num_attention_heads"),
    ):
        layers: dict[int, int] = getattr(section, key)
        for whose, config, numbers in (
            ("the student", mine, layers.keys()),
            ("the teacher", theirs, layers.values()),
        ):
            highest = config.num_hidden_layers - first
            if beyond := [number for number in numbers if number > highest]:
                raise HftuneError(
                    f"distillation.{key}: {whose} has no {beyond[0]}: they go from 0 to {highest}"
                )
        if layers and getattr(mine, size) != getattr(theirs, size):
            _check_widths(key, size, mine, theirs, optimizer)


def _check_widths(
    key: str, size: str, mine: PreTrainedConfig, theirs: PreTrainedConfig, optimizer: str
) -> None:
    """Raise if mapped layers have different widths, and no projection between them can train."""
    widths = (
        f"distillation.{key}: {size} is {getattr(mine, size)} of the student and "
        f"{getattr(theirs, size)} of the teacher"
    )
    if key == "attentions":
        raise HftuneError(
            f"{widths}; heads are matched as they are",
            hint="take a student of the teacher's own layers: model.keep_layers",
        )
    row = OPTIMIZERS[optimizer]
    if row.first_part is not None or not row.groups:
        raise HftuneError(
            f"{widths}, and training.optim {optimizer} groups parameters by itself: it cannot "
            "train a layer between them",
            hint="take adamw_torch",
        )
