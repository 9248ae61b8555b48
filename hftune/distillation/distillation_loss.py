# SPDX-License-Identifier: Apache-2.0
"""The loss of a student: ``alpha`` times what its teacher says, and the rest for the labels.

``alpha * T^2 * KL(teacher_T || student_T) + (1 - alpha) * loss of the labels``, to which distances
of hidden states and of attention may be added. Each part is a mean over what it counts: the first
over the items that are taught, the second over the labels, by their weights, the others over the
tokens. So a row without a label is taught by the teacher alone, and ``alpha`` keeps its meaning
however many labels there are.
"""

from copy import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

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
    """A task's loss beside the answers of teachers.

    Args:
        task_loss: What the labels are judged by.
        section: What the recipe says.
        teacher: Answers the batches; None until :meth:`with_teacher`.

    Attributes:
        share: What part of ``alpha`` counts in the present step, while it grows.
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
        """Learn what kind of labels there are; see :class:`Loss`.

        Raises:
            HftuneError: An option means nothing for them.
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
        """Return a copy of the loss that asks a teacher.

        Args:
            teacher: Answers the batches.
            projections: Student's layer to a layer between two widths; see :func:`projections_of`.
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
        """How many items are taught: rows, tokens, or cells of a row of labels."""
        if by_token(batch):
            return counted(targets(batch["labels"], causal=self.causal)).sum()
        rows = real_rows(batch).sum()
        return rows * self.num_classes if self.several else rows

    def step_cost(self) -> StepCost:
        """Return the cost of the student, whose logits are compared with the teacher's as a whole.

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
        """Return how far logits ``(N, C)`` are from what the teachers say, summed, ``()``."""
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
        """The distances of hidden states and of attention, means over the mapped layers."""
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
        """Hidden states of the student at the width of the teacher's."""
        if str(layer) not in self.projections:
            return states
        projection = cast(nn.Linear, self.projections[str(layer)])
        return cast(Tensor, projection(states.to(projection.weight.dtype)))


class AlphaWarmup(TrainerCallback):
    """Let ``alpha`` grow from 0, so that a teacher counts once it knows something.

    Args:
        loss: Whose share of ``alpha`` is set.
        total: Optimizer steps of the run.
    """

    def __init__(self, loss: Distillation, total: int) -> None:
        self.loss = loss
        self.steps = resolve_steps(loss.section.warmup_steps, total)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the share of the step that comes."""
        self.loss.share = min(1.0, state.global_step / self.steps)


def projections_of(
    section: DistillationSection, student: int, teacher: int, seed: int
) -> nn.ModuleDict:
    """Return learned linear layers between hidden states of two widths, one a pair of layers.

    Args:
        section: Maps the student's hidden states to the teacher's.
        student: Width of the student's.
        teacher: Width of the teacher's.
        seed: Decides the weights that they begin with.

    References:
        Jiao et al., "TinyBERT", 2020, arXiv:1909.10351, equation 8.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleDict(
            {str(mine): nn.Linear(student, teacher) for mine in section.hidden_states}
        )


def _without_row(batch: Batch) -> dict[str, Any]:
    """The batch as model and task loss know it."""
    return {name: value for name, value in batch.items() if name != ROW}
