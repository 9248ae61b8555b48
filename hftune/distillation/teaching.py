# SPDX-License-Identifier: Apache-2.0
"""Teachers at work: run on every batch, or once, and their answers kept.

What is kept lies in the cache under a digest of all that decides it: the teachers' weights, the
rows, the order of the labels, the precision, and of the likeliest tokens temperature and number.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import nn

from hftune.core.cache import Kept, Layout, keep, read_kept
from hftune.core.console import number_of, say, warn
from hftune.core.processes import found_or_made
from hftune.data.arrow import column_array, items, lengths
from hftune.distillation.distillation_loss import Distillation
from hftune.distillation.divergence import TopK, target_log_probs, top_k_of
from hftune.distillation.mean_teacher import AverageTeacher, precision_of
from hftune.distillation.teacher import Answer, Teacher, taught
from hftune.distillation.teachers import load_teacher
from hftune.distillation.unlabelled import all_training_rows
from hftune.losses.loss import ROW, Batch
from hftune.methods.probe.features import features_key
from hftune.regularization.weight_averaging import Averaging
from hftune.tasks.inference import batches_by_length
from hftune.training.plan.arguments import mixed_precision
from hftune.training.plan.plan import Plan

#: Part of the cache's key: raise it when answers are computed differently.
ANSWERS_VERSION = 1
CACHE = "answers"


def training_rows(plan: Plan) -> Dataset:
    """Return what trains: with a teacher also rows without labels, and each has its number."""
    if not isinstance(plan.loss, Distillation):
        return plan.train.dataset
    bare = None if plan.unlabelled is None else plan.unlabelled.dataset
    rows = all_training_rows(plan.train.dataset, bare)
    return rows.add_column(ROW, np.arange(len(rows)))


def give_teacher(
    plan: Plan,
    rows: Dataset,
    model: nn.Module | None = None,
    averaging: Averaging | None = None,
) -> None:
    """Let the loss of a plan have its teacher, if there is one.

    Args:
        plan: The run.
        rows: What trains; see :func:`training_rows`.
        model: The student, where the average of its own weights may be the teacher.
        averaging: What keeps that average.
    """
    if not isinstance(plan.loss, Distillation):
        return
    section = plan.loss.section
    if section.is_own_average:
        assert model is not None, "who trains has a model"
        precision = mixed_precision(plan.arguments)
        plan.loss.teacher = AverageTeacher(
            model, averaging, causal=plan.task.causal, precision=precision
        )
        say("teacher: the average of the student's weights, in every step")
        return
    if (width := projected_width(plan)) is not None:
        plan.loss.project(*width, plan.arguments.seed)
        say(
            "distillation.hidden_states: {} wide of the student and {} of the teacher; a linear "
            "layer between each pair trains along and is not saved with the model".format(*width)
        )
    whole = plan.task.name in ("text-generation", "text2text-generation") and section.top_k is None
    possible = not (section.looks_inside or plan.stream is not None or whole)
    kept = cached_teacher(plan, rows) if possible and section.cache is not False else None
    if kept is None:
        names = ", ".join(teacher.path for teacher in plan.teachers)
        say(f"teacher: {names}, in every step")
    plan.loss.teacher = running_teacher(plan) if kept is None else kept


def projected_width(plan: Plan) -> tuple[int, int] | None:
    """Return the widths of the student's and the teacher's hidden states; None if equal."""
    assert isinstance(plan.loss, Distillation)
    if not plan.loss.section.hidden_states:
        return None
    mine, theirs = (
        int(config.get_text_config().hidden_size)
        for config in (plan.config, plan.teachers[0].config)
    )
    return None if mine == theirs else (mine, theirs)


class RunningTeacher(Teacher):
    """Teachers that run on every batch.

    Args:
        models: In evaluation mode.
        orders: Where each of the student's labels stands among theirs; None where alike.
        causal: Whether position ``t`` predicts label ``t + 1``.
        reads_types: Whether each of them takes ``token_type_ids``.
        precision: ``bf16``, ``fp16``, or another word for the weights' own.
        hidden_states: Whether they are asked for.
        attentions: The same.
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
        """Run all of them; see :class:`Teacher`."""
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
    """Teachers whose answers were kept.

    Args:
        answers: Of all rows.
    """

    def __init__(self, answers: Kept) -> None:
        self.answers = answers

    def answer(self, inputs: Batch) -> Answer:
        """Look up the rows of a batch; see :class:`Teacher`."""
        device = inputs[ROW].device
        rows = [row for row in inputs[ROW].tolist() if row >= 0]
        found = {name: value.to(device) for name, value in self.answers.of_rows(rows).items()}
        if "logits" in found:
            return Answer(logits=found["logits"].transpose(0, 1))
        return Answer(top=TopK(found["log_probs"], found["classes"].long(), found["rest"]))


def running_teacher(plan: Plan) -> RunningTeacher:
    """Load the teachers of a plan."""
    assert isinstance(plan.loss, Distillation)
    section, arguments = plan.loss.section, plan.arguments
    return RunningTeacher(
        [
            load_teacher(one, plan.task, arguments.device, eager=bool(section.attentions))
            for one in plan.teachers
        ],
        [teacher.order(plan.task.label_names) for teacher in plan.teachers],
        causal=plan.task.causal,
        reads_types=[
            "token_type_ids" in teacher.tokenizer.model_input_names for teacher in plan.teachers
        ],
        precision=mixed_precision(arguments),
        hidden_states=bool(section.hidden_states),
        attentions=bool(section.attentions),
    )


def cached_teacher(plan: Plan, rows: Dataset) -> KeptTeacher | None:
    """Return answers out of the cache; compute and keep them first where they are not there.

    None where they cannot be kept: the disk is full, or another machine has no part in the cache.
    """
    key, layout = answers_key(plan, rows), answers_layout(plan, rows)
    found = found_or_made(
        plan.arguments,
        lambda: read_kept(key, layout),
        lambda: _compute(plan, rows, key, layout),
        f"teacher: answers to {len(rows)} rows, out of the cache",
    )
    return None if found is None else KeptTeacher(found)


def answers_key(plan: Plan, rows: Dataset) -> str:
    """Return the digest of all that decides the answers."""
    assert isinstance(plan.loss, Distillation)
    section, task = plan.loss.section, plan.task
    tokens = rows.remove_columns(ROW)
    if isinstance(tokens[0]["labels"], list) and task.problem_type is None:
        tokens = tokens.rename_column("labels", "taught")  # which tokens are taught
    return features_key(
        tokens,
        answers=ANSWERS_VERSION,
        teachers=[teacher.fingerprint() for teacher in plan.teachers],
        orders=[teacher.order(task.label_names) for teacher in plan.teachers],
        precision=[mixed_precision(plan.arguments), plan.arguments.device.type],
        top_k=section.top_k and [section.top_k, plan.loss.temperature],
    )


def answers_layout(plan: Plan, rows: Dataset) -> Layout:
    """Return where the answers to each row stand, and the shape of one."""
    assert isinstance(plan.loss, Distillation)
    if plan.task.problem_type is not None or not isinstance(rows[0]["labels"], list):
        counts = np.ones(len(rows), dtype=np.int64)
    else:
        counts = _taught_tokens(rows, causal=plan.task.causal)
    starts = np.concatenate([[0], np.cumsum(counts)])
    k = plan.loss.section.top_k
    if k is None:
        shape = (len(plan.teachers), plan.num_classes())
        return Layout(CACHE, starts, {"logits": (np.dtype(np.float32), shape)})
    return Layout(
        CACHE,
        starts,
        {
            "log_probs": (np.dtype(np.float32), (k,)),
            "classes": (np.dtype(np.int32), (k,)),
            "rest": (np.dtype(np.float32), ()),
        },
    )


def _taught_tokens(rows: Dataset, *, causal: bool) -> NDArray[np.int64]:
    """How many tokens of each row have a label that is predicted."""
    sizes = lengths(column_array(rows, "labels"))
    ends = np.cumsum(sizes)
    known = items(column_array(rows, "labels")) != -100
    if causal:
        known[(ends - sizes)[sizes > 0]] = False
    total = np.concatenate([[0], np.cumsum(known)])
    counts: NDArray[np.int64] = total[ends] - total[ends - sizes]
    return counts


def _compute(plan: Plan, rows: Dataset, key: str, layout: Layout) -> bool:
    """Run the teachers over all rows, longest first, and keep what they say."""
    assert isinstance(plan.loss, Distillation)
    section, loss = plan.loss.section, plan.loss
    if (room := layout.room()) is not None:
        warn(f"the teacher's answers are not kept: {room}; it runs in every step")
        return False
    teacher = running_teacher(plan)
    collate = plan.task.collator(plan.tokenizer, teacher.models[0])
    sizes = lengths(column_array(rows, "input_ids")).tolist()
    names = ", ".join(one.path for one in plan.teachers)
    say(f"teacher: {names} answers {number_of(len(rows), 'row', 'rows')}, once for this content")

    def batches() -> Any:
        for indices in batches_by_length(
            sizes, plan.arguments.per_device_eval_batch_size, "asking the teacher"
        ):
            batch = collate([rows[index] for index in indices])
            answer = teacher.answer({k: v.to(plan.arguments.device) for k, v in batch.items()})
            assert answer.logits is not None
            if section.top_k is None:
                yield indices, {"logits": answer.logits.transpose(0, 1)}
            else:
                target = target_log_probs(answer.logits, loss.temperature)
                yield indices, top_k_of(target, section.top_k)._asdict()

    try:
        keep(key, layout, batches())
    except OSError as error:
        warn(f"the teacher's answers are not kept: {error.strerror}; it runs in every step")
        return False
    return True
