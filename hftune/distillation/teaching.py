# SPDX-License-Identifier: Apache-2.0
"""Run teachers on every batch, or once, and cache their answers.

The cache key is a digest of everything that decides the answers: the teachers' weights, the rows,
the order of the labels, the precision, and temperature and number of the likeliest tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedConfig

from hftune.core import cached_arrays
from hftune.core.cached_arrays import ArrayLayout, CachedArrays
from hftune.core.console import number_of, say, warn
from hftune.core.cost import StepCost
from hftune.core.processes import found_or_computed
from hftune.data.arrow import column_array, items, lengths
from hftune.distillation.distillation_loss import Distillation, projections_of
from hftune.distillation.divergence import TopK, target_log_probs, top_k_of
from hftune.distillation.mean_teacher import AverageTeacher, precision_of
from hftune.distillation.teacher import Answer, Teacher, taught
from hftune.distillation.teachers import NamedTeacher, load_teacher
from hftune.distillation.unlabelled import all_training_rows
from hftune.losses.loss import ROW, Batch, Loss
from hftune.methods.probe.features import features_key
from hftune.models.meta_model import empty_model
from hftune.regularization.weight_averaging import Averaging
from hftune.tasks import TASKS
from hftune.tasks.context import RunContext
from hftune.tasks.inference import batches_by_length
from hftune.tasks.task import Task

#: Part of the cache's key: raise it when answers are computed differently.
ANSWERS_VERSION = 1
KIND: Final = "answers"
#: Tensors of the size of hidden states that one layer holds in a pass without gradients.
HIDDEN_AT_ONCE = 6


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """Facts that teachers need about the run of their student.

    Attributes:
        task: The student's, with its labels.
        teachers: The teachers without weights; none if the student's average is the teacher.
        student: The student's config.
        context: Device, precision, seed, tokenizer and batch size of the run.
        streamed: Whether the rows are streamed, so that answers cannot be cached.
    """

    task: Task
    teachers: Sequence[NamedTeacher]
    student: PreTrainedConfig
    context: RunContext
    streamed: bool = False

    @property
    def names(self) -> str:
        """Names of the teachers in the recipe."""
        return ", ".join(teacher.path for teacher in self.teachers)


def training_rows(loss: Loss, train: Dataset, unlabelled: Dataset | None) -> Dataset:
    """Return the training rows; with a teacher, number them and add those without labels.

    Args:
        loss: The run's; :class:`Distillation` has a teacher.
        train: Encoded rows with labels.
        unlabelled: Encoded rows without labels, if there are any.
    """
    if not isinstance(loss, Distillation):
        return train
    rows = all_training_rows(train, unlabelled)
    return rows.add_column(ROW, np.arange(len(rows)))


def with_teacher(
    loss: Loss,
    teaching: Teaching,
    rows: Dataset,
    model: nn.Module | None = None,
    averaging: Averaging | None = None,
) -> Loss:
    """Return :class:`Distillation` with its teacher; return any other loss unchanged.

    Args:
        loss: The run's.
        teaching: The teachers, and facts about the run.
        rows: See :func:`training_rows`.
        model: The student; needed if the average of its weights is the teacher.
        averaging: Keeps that average.
    """
    if not isinstance(loss, Distillation):
        return loss
    context = teaching.context
    if loss.section.is_own_average:
        assert model is not None, "who trains has a model"
        say("teacher: the average of the student's weights, in every step")
        return loss.with_teacher(
            AverageTeacher(
                model, averaging, causal=teaching.task.causal, precision=context.mixed_precision
            )
        )
    projections = None
    if (width := projected_width(loss, teaching)) is not None:
        projections = projections_of(loss.section, *width, context.seed)
        say(
            "hidden states of the student have the width {}, and of the teacher {}: a linear "
            "layer between each pair trains along and is not saved with the model".format(*width)
        )
    kept = cached_teacher(loss, teaching, rows) if _keeps_answers(loss, teaching) else None
    if kept is None:
        say(f"teacher: {teaching.names}, in every step")
    return loss.with_teacher(kept or running_teacher(loss, teaching), projections)


def _keeps_answers(loss: Distillation, teaching: Teaching) -> bool:
    """Tell whether answers can be cached, and the recipe does not forbid it."""
    section = loss.section
    whole_vocabulary = TASKS[teaching.task.name].writes and section.top_k is None
    possible = not (section.looks_inside or teaching.streamed or whole_vocabulary)
    return possible and section.cache is not False


def teacher_cost(loss: Loss, teaching: Teaching) -> StepCost:
    """Return the cost of teachers in a step; cached answers cost nothing.

    Args:
        loss: The run's.
        teaching: The teachers, and facts about the run.
    """
    if not isinstance(loss, Distillation):
        return StepCost()
    if loss.section.is_own_average:
        return StepCost(forward_passes=1, hidden_copies=HIDDEN_AT_ONCE, logit_copies=1)
    if _keeps_answers(loss, teaching):
        return StepCost()
    costs = [_running_cost(loss, teaching, teacher) for teacher in teaching.teachers]
    return sum(costs, StepCost(logit_copies=1))


def _running_cost(loss: Distillation, teaching: Teaching, teacher: NamedTeacher) -> StepCost:
    """Return the cost of one teacher: its weights, a pass without gradients, and its answers."""
    mine, theirs = (one.get_text_config() for one in (teaching.student, teacher.config))
    section, layers = loss.section, int(theirs.num_hidden_layers)
    hidden = HIDDEN_AT_ONCE + (layers + 1 if section.hidden_states else 0)
    heads = theirs.num_attention_heads / mine.num_attention_heads
    model = empty_model(teaching.task.auto_model, teacher.config, None)
    return StepCost(
        forward_passes=1,
        logit_copies=1,
        hidden_copies=hidden * theirs.hidden_size / mine.hidden_size,
        score_copies=layers * heads if section.attentions else 0,
        other_weights=sum(p.numel() for p in model.parameters()) * torch.float32.itemsize,
    )


def projected_width(loss: Distillation, teaching: Teaching) -> tuple[int, int] | None:
    """Return the widths of the student's and the teacher's hidden states; None if equal."""
    if not loss.section.hidden_states:
        return None
    mine, theirs = (
        int(config.get_text_config().hidden_size)
        for config in (teaching.student, teaching.teachers[0].config)
    )
    return None if mine == theirs else (mine, theirs)


class RunningTeacher(Teacher):
    """Teachers that run on every batch.

    Args:
        models: The models in evaluation mode.
        orders: For each model, its ids of the student's labels; None if they are equal.
        causal: Whether position ``t`` predicts label ``t + 1``.
        reads_types: For each model, whether it takes ``token_type_ids``.
        precision: See :func:`hftune.distillation.mean_teacher.precision_of`.
        hidden_states: Whether the loss needs hidden states.
        attentions: Whether the loss needs attention weights.
    """

    def __init__(
        self,
        models: Sequence[Any],
        orders: Sequence[list[int] | None],
        *,
        causal: bool = False,
        reads_types: Sequence[bool] = (),
        precision: str = "no",
        hidden_states: bool = False,
        attentions: bool = False,
    ) -> None:
        self.models, self.orders = list(models), list(orders)
        self.causal = causal
        self.reads_types = list(reads_types) or [True] * len(self.models)
        self.precision = precision
        self.asked = {"output_hidden_states": True} if hidden_states else {}
        self.asked |= {"output_attentions": True} if attentions else {}

    def answer(self, inputs: Batch) -> Answer:
        """Run all teachers; see :class:`Teacher`."""
        said = []
        outputs: Any = None
        device = inputs["input_ids"].device.type
        with torch.no_grad(), precision_of(self.precision, device):
            for model, order, reads_types in zip(
                self.models, self.orders, self.reads_types, strict=True
            ):
                dropped = {"labels", ROW} | (set() if reads_types else {"token_type_ids"})
                given = {key: value for key, value in inputs.items() if key not in dropped}
                outputs = model(**given, **self.asked)
                logits = taught(outputs.logits, inputs, causal=self.causal)
                said.append(logits if order is None else logits[:, order])
        width = min(logits.shape[-1] for logits in said)
        return Answer(
            logits=torch.stack([logits[:, :width] for logits in said]),
            hidden_states=outputs.hidden_states if "output_hidden_states" in self.asked else (),
            attentions=outputs.attentions if "output_attentions" in self.asked else (),
        )


class KeptTeacher(Teacher):
    """Teachers whose answers are cached.

    Args:
        answers: The answers to all rows.
    """

    def __init__(self, answers: CachedArrays) -> None:
        self.answers = answers

    def answer(self, inputs: Batch) -> Answer:
        """Look up the rows of a batch; see :class:`Teacher`."""
        device = inputs[ROW].device
        rows = [row for row in inputs[ROW].tolist() if row >= 0]
        found = {name: value.to(device) for name, value in self.answers.of_rows(rows).items()}
        if "logits" in found:
            return Answer(logits=found["logits"].transpose(0, 1))
        return Answer(top=TopK(found["log_probs"], found["classes"].long(), found["rest"]))


def running_teacher(loss: Distillation, teaching: Teaching) -> RunningTeacher:
    """Load the teachers."""
    section, task, context = loss.section, teaching.task, teaching.context
    return RunningTeacher(
        [
            load_teacher(one, task, context.device, eager=bool(section.attentions))
            for one in teaching.teachers
        ],
        [teacher.order(task.label_names) for teacher in teaching.teachers],
        causal=task.causal,
        reads_types=[
            "token_type_ids" in teacher.tokenizer.model_input_names for teacher in teaching.teachers
        ],
        precision=context.mixed_precision,
        hidden_states=bool(section.hidden_states),
        attentions=bool(section.attentions),
    )


def cached_teacher(loss: Distillation, teaching: Teaching, rows: Dataset) -> KeptTeacher | None:
    """Return a teacher with cached answers; compute and store missing answers first.

    Return None if they cannot be stored: the disk is full, or another machine has no access.
    """
    key, layout = answers_key(loss, teaching, rows), answers_layout(loss, teaching, rows)
    found = found_or_computed(
        teaching.context,
        lambda: cached_arrays.read_arrays(key, layout),
        lambda: _compute(loss, teaching, rows, key, layout),
        f"teacher: answers to {len(rows)} rows, out of the cache",
    )
    return None if found is None else KeptTeacher(found)


def answers_key(loss: Distillation, teaching: Teaching, rows: Dataset) -> str:
    """Return the cache key of the answers: a digest of everything that decides them."""
    section, task, context = loss.section, teaching.task, teaching.context
    tokens = rows.remove_columns(ROW)
    if isinstance(tokens[0]["labels"], list) and task.problem_type is None:
        tokens = tokens.rename_column("labels", "taught")  # the labels decide the taught tokens
    return features_key(
        tokens,
        answers=ANSWERS_VERSION,
        teachers=[teacher.fingerprint() for teacher in teaching.teachers],
        orders=[teacher.order(task.label_names) for teacher in teaching.teachers],
        precision=[context.mixed_precision, context.device.type],
        top_k=section.top_k and [section.top_k, loss.temperature],
    )


def answers_layout(loss: Distillation, teaching: Teaching, rows: Dataset) -> ArrayLayout:
    """Return the layout of the answers: their index for each row, and their shape."""
    task = teaching.task
    if task.problem_type is not None or not isinstance(rows[0]["labels"], list):
        counts = np.ones(len(rows), dtype=np.int64)
    else:
        counts = _taught_tokens(rows, causal=task.causal)
    starts = np.concatenate([[0], np.cumsum(counts)])
    k = loss.section.top_k
    if k is None:
        shape = (len(teaching.teachers), max(loss.num_classes, 1))  # a number has no classes
        return ArrayLayout(KIND, starts, {"logits": (np.dtype(np.float32), shape)})
    return ArrayLayout(
        KIND,
        starts,
        {
            "log_probs": (np.dtype(np.float32), (k,)),
            "classes": (np.dtype(np.int32), (k,)),
            "rest": (np.dtype(np.float32), ()),
        },
    )


def _taught_tokens(rows: Dataset, *, causal: bool) -> NDArray[np.int64]:
    """Return the number of tokens of each row with a label that the model predicts."""
    sizes = lengths(column_array(rows, "labels"))
    ends = np.cumsum(sizes)
    known = items(column_array(rows, "labels")) != -100
    if causal:
        known[(ends - sizes)[sizes > 0]] = False
    total = np.concatenate([[0], np.cumsum(known)])
    counts: NDArray[np.int64] = total[ends] - total[ends - sizes]
    return counts


def _compute(
    loss: Distillation, teaching: Teaching, rows: Dataset, key: str, layout: ArrayLayout
) -> bool:
    """Run the teachers over all rows, longest first, and store their answers."""
    section, context = loss.section, teaching.context
    if (room := layout.room()) is not None:
        warn(f"the teacher's answers are not kept: {room}; it runs in every step")
        return False
    teacher = running_teacher(loss, teaching)
    assert context.processor is not None, "a run has one"
    collate = teaching.task.collator(context.processor, teacher.models[0])
    sizes = lengths(column_array(rows, "input_ids")).tolist()
    number = number_of(len(rows), "row", "rows")
    say(f"teacher: {teaching.names} answers {number}, once for this content")

    def batches() -> Any:
        for indices in batches_by_length(sizes, context.eval_batch_size, "asking the teacher"):
            batch = collate([rows[index] for index in indices])
            answer = teacher.answer({k: v.to(context.device) for k, v in batch.items()})
            assert answer.logits is not None
            if section.top_k is None:
                yield indices, {"logits": answer.logits.transpose(0, 1)}
            else:
                target = target_log_probs(answer.logits, loss.temperature)
                yield indices, top_k_of(target, section.top_k)._asdict()

    try:
        cached_arrays.write_arrays(key, layout, batches())
    except OSError as error:
        warn(f"the teacher's answers are not kept: {error.strerror}; it runs in every step")
        return False
    return True
