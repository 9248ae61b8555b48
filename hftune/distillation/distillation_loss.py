# SPDX-License-Identifier: Apache-2.0
"""The loss of a student: ``alpha`` weighs the teacher's answers, ``1 - alpha`` the labels.

``alpha * T^2 * KL(teacher_T || student_T) + (1 - alpha) * loss of the labels``; distances of hidden
states and of attention may be added. Each part is a mean: the first over the taught items, the
second over the labels, with their weights, and the others over the tokens. So a row without a label
learns from the teacher only, and ``alpha`` has the same meaning for any number of labels.
"""

from copy import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hftune.core.cost import StepCost
from hftune.core.errors import HftuneError
from hftune.core.steps import resolve_steps
from hftune.distillation.divergence import (
    attention_divergence,
    binary_divergence,
    divergence,
    hidden_distance,
    target_log_probs,
    top_k_divergence,
    top_k_of,
)
from hftune.distillation.section import TEMPERATURE, DistillationSection
from hftune.distillation.teacher import (
    Answer,
    Teacher,
    by_token,
    real_rows,
    real_tokens,
    taught,
)
from hftune.losses.chunked_head import whole_logits
from hftune.losses.loss import ROW, Batch, LabelStats, Loss, counted, targets


class Distillation(Loss):
    """The loss of a task, combined with the distance from the answers of teachers.

    Args:
        task_loss: The loss of the labels.
        section: The recipe's ``distillation``.
        teacher: Answers the batches; None until :meth:`with_teacher`.

    Attributes:
        share: Factor of ``alpha`` in the present step; it grows to 1 during the warm-up.
    """

    def __init__(
        self, task_loss: Loss, section: DistillationSection, teacher: Teacher | None = None
    ) -> None:
        self.task_loss = task_loss
        self.section = section
        self.teacher = teacher
        self.temperature = section.temperature or TEMPERATURE
        self.several = self.numbers = False
        self.num_classes = 0
        self.share = 1.0
        self.projections = nn.ModuleDict()

    def fit(self, stats: LabelStats) -> None:
        """Learn the kind and number of labels; see :class:`Loss`.

        Raises:
            HftuneError: An option has no meaning for these labels.
        """
        super().fit(stats)
        self.task_loss.fit(stats)
        self.several, self.numbers = stats.several, stats.numbers
        self.num_classes = len(stats.classes)
        if self.numbers and self.section.temperature is not None:
            raise HftuneError("distillation.temperature: a teacher's number has none to divide")
        if self.section.top_k is not None and self.section.top_k >= self.num_classes:
            raise HftuneError(
                f"distillation.top_k: {self.section.top_k} of {self.num_classes} tokens are all",
                hint="leave it out to be taught every token",
            )

    def check(self, model: nn.Module) -> None:
        """Raise :class:`HftuneError` if the task's loss does not work with the model."""
        self.task_loss.check(model)

    def with_teacher(
        self, teacher: Teacher, projections: nn.ModuleDict | None = None
    ) -> "Distillation":
        """Return a copy of the loss with a teacher.

        Args:
            teacher: Answers the batches.
            projections: A projection for each of the student's layers; see :func:`projections_of`.
        """
        taught_loss = copy(self)
        taught_loss.teacher = teacher
        if projections is not None:
            taught_loss.projections = projections
        return taught_loss

    def callbacks(self, total_steps: int) -> list[TrainerCallback]:
        """Return the warm-up of ``alpha``, if there is one; see :class:`Loss`."""
        return [AlphaWarmup(self, total_steps)] if self.section.warmup_steps > 0 else []

    def layers(self) -> nn.Module | None:
        """Return the projections, if there are any; see :class:`Loss`."""
        return self.projections if len(self.projections) > 0 else None

    def denominator(self, batch: Batch) -> Tensor:
        """Return one number for each part of the loss, shape ``(parts,)``; see :class:`Loss`."""
        counts = [self._items(batch)] if self.section.alpha > 0 else []
        if self.section.counts_labels:
            counts.append(self.task_loss.denominator(_without_row(batch)))
        if self.section.looks_inside:
            tokens = real_tokens(batch).sum()
            counts += [tokens] * (bool(self.section.hidden_states) + bool(self.section.attentions))
        return torch.stack([count.to(torch.float64) for count in counts])

    def _items(self, batch: Batch) -> Tensor:
        """Return the number of taught items: rows, tokens, or rows times classes."""
        if by_token(batch):
            return counted(targets(batch["labels"], causal=self.causal)).sum()
        rows = real_rows(batch).sum()
        return rows * self.num_classes if self.several else rows

    def step_cost(self) -> StepCost:
        """Return the cost of the student; the loss needs its logits whole, not in chunks.

        The teacher's own cost is that of :func:`hftune.distillation.teaching.teacher_cost`.
        """
        return self.task_loss.step_cost().with_whole_logits() + StepCost(logit_copies=4)

    def total(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """Return the sums of the parts, shape ``(parts,)``, and the model's outputs."""
        assert self.teacher is not None, "with_teacher comes before training"
        given, section = self.teacher.answer(inputs), self.section
        asked: dict[str, Any] = _without_row(inputs)
        asked |= {"output_hidden_states": True} if section.hidden_states else {}
        asked |= {"output_attentions": True} if section.attentions else {}
        with whole_logits():
            of_labels, outputs = self.task_loss.total(model, asked)
        parts, alpha = [], self.share * section.alpha
        if section.alpha > 0:
            student = taught(outputs.logits, inputs, causal=self.causal)
            parts.append(alpha * self.distance(student, given))
        if section.counts_labels:
            parts.append((1 - alpha) * of_labels)
        parts += self._inside(outputs, given, real_tokens(inputs)) if section.looks_inside else []
        return torch.stack([part.to(parts[0].dtype) for part in parts]), outputs

    def distance(self, student: Tensor, given: Answer) -> Tensor:
        """Return the summed distance of logits ``(N, C)`` from the teachers' answers, ``()``."""
        if self.numbers:
            assert given.logits is not None
            return (student - given.logits.mean(0)).square().sum()
        if self.several:
            assert given.logits is not None
            return binary_divergence(student, given.logits, self.temperature)
        top = given.top
        if given.logits is not None:
            # Vocabularies of one tokenizer may be padded to different sizes.
            width = min(student.shape[-1], given.logits.shape[-1])
            student = student[:, :width]
            target = target_log_probs(given.logits[..., :width], self.temperature)
            if self.section.top_k is None:
                return divergence(student, target, self.temperature)
            top = top_k_of(target, self.section.top_k)
        assert top is not None
        return top_k_divergence(student, top, self.temperature)

    def _inside(self, outputs: Any, given: Answer, mask: Tensor) -> list[Tensor]:
        """Return the distances of hidden states and attention, averaged over the mapped layers."""
        section, parts = self.section, []
        if layers := section.hidden_states:
            apart = [
                hidden_distance(
                    self._projected(mine, outputs.hidden_states[mine]),
                    given.hidden_states[theirs],
                    mask,
                )
                for mine, theirs in layers.items()
            ]
            parts.append((section.hidden_states_weight or 1.0) * torch.stack(apart).mean())
        if layers := section.attentions:
            apart = [
                attention_divergence(outputs.attentions[mine], given.attentions[theirs], mask)
                for mine, theirs in layers.items()
            ]
            parts.append((section.attentions_weight or 1.0) * torch.stack(apart).mean())
        return parts

    def _projected(self, layer: int, states: Tensor) -> Tensor:
        """Return the student's hidden states at the width of the teacher's."""
        if str(layer) not in self.projections:
            return states
        projection = cast(nn.Linear, self.projections[str(layer)])
        return cast(Tensor, projection(states.to(projection.weight.dtype)))


class AlphaWarmup(TrainerCallback):
    """Lets ``alpha`` grow from 0, so that a mean teacher counts only after it has learned.

    Args:
        loss: The loss whose share of ``alpha`` grows.
        total: Optimizer steps of the run.
    """

    def __init__(self, loss: Distillation, total: int) -> None:
        self.loss = loss
        self.steps = resolve_steps(loss.section.warmup_steps, total)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the share of ``alpha`` for the coming step."""
        self.loss.share = min(1.0, state.global_step / self.steps)


def projections_of(
    section: DistillationSection, student: int, teacher: int, seed: int
) -> nn.ModuleDict:
    """Return linear layers from the student's width to the teacher's, one for each mapped layer.

    Args:
        section: Maps the student's hidden states to the teacher's.
        student: Width of the student's hidden states.
        teacher: Width of the teacher's hidden states.
        seed: Seed of their initial weights.

    Example:
        >>> section = DistillationSection(teacher="bert", hidden_states={2: 4})
        >>> projections_of(section, student=3, teacher=5, seed=0)
        ModuleDict(
          (2): Linear(in_features=3, out_features=5, bias=True)
        )

    References:
        Jiao et al., "TinyBERT", 2020, arXiv:1909.10351, equation 8.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleDict(
            {str(mine): nn.Linear(student, teacher) for mine in section.hidden_states}
        )


def _without_row(batch: Batch) -> dict[str, Any]:
    """Return the batch without row numbers, for model and task loss."""
    return {name: value for name, value in batch.items() if name != ROW}
