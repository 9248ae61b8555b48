# SPDX-License-Identifier: Apache-2.0
"""The parts of a student's loss by hand, and what each is divided by."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hftune.distillation.distillation_loss import Distillation, projections_of
from hftune.distillation.section import DistillationSection
from hftune.distillation.teacher import Answer, Teacher, taught
from hftune.losses.bce_with_logits import BceWithLogits
from hftune.losses.cross_entropy import CrossEntropy
from hftune.losses.loss import ROW, Batch, LabelStats, Loss
from hftune.losses.regression import MeanSquaredError
from tests.losses.given import Given

CLASSES = ["a", "b", "c"]
IDS = torch.ones(4, 5, dtype=torch.long)


class Said(Teacher):
    """Answers with what it was given."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def answer(self, inputs: Batch) -> Answer:
        return Answer(
            logits=torch.stack([taught(one, inputs, causal=False) for one in self.logits])
        )


def loss_of(
    task_loss: Loss, said: Tensor, problem_type: str | None, **options: Any
) -> Distillation:
    section = DistillationSection(teacher="t", **options)
    loss = Distillation(task_loss, section, Said(said))
    loss.fit(LabelStats(classes=CLASSES, counts=[4, 2, 2], rows=8, problem_type=problem_type))
    return loss


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """A student's ``(4, 3)`` and two teachers' ``(2, 4, 3)``."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, generator=generator), torch.randn(2, 4, 3, generator=generator)


def test_one_label(logits: tuple[Tensor, Tensor]) -> None:
    """The third row has no label, the fourth is blank."""
    student, teachers = logits
    inputs = {
        "input_ids": IDS,
        "labels": torch.tensor([0, 2, -100, -100]),
        ROW: torch.tensor([7, 1, 3, -1]),
    }
    weights = [1.0, 2.0, 5.0]
    loss = loss_of(
        CrossEntropy(class_weights=weights), teachers, "single_label_classification",
        alpha=0.7, temperature=3.0,
    )  # fmt: skip
    total, _ = loss.total(Given(student), inputs)
    p = (teachers / 3).softmax(-1).mean(0)[:3]
    q = (student / 3).softmax(-1)[:3]
    kl = 9 * (p * (p / q).log()).sum()
    ce = F.cross_entropy(student[:2], inputs["labels"][:2], weight=torch.tensor(weights),
                         reduction="sum")  # fmt: skip
    torch.testing.assert_close(total, torch.stack([0.7 * kl, 0.3 * ce]))
    assert loss.denominator(inputs).tolist() == [3, 1 + 5]


def test_without_labels_and_without_answers_it_is_the_other(logits: tuple[Tensor, Tensor]) -> None:
    student, teachers = logits
    inputs = {"input_ids": IDS, "labels": torch.tensor([0, 2, 1, 1])}
    alone = loss_of(CrossEntropy(), teachers[:1], None, alpha=0.0)
    total, _ = alone.total(Given(student), inputs)
    of_labels, _ = CrossEntropy().total(Given(student), inputs)
    assert torch.equal(total, of_labels[None])
    assert alone.denominator(inputs).tolist() == [4]
    taught_alone = loss_of(CrossEntropy(), teachers[:1], None, alpha=1.0)
    total, _ = taught_alone.total(Given(teachers[0]), inputs)
    assert total.shape == taught_alone.denominator(inputs).shape == (1,)
    assert total.item() == pytest.approx(0, abs=1e-6)


def test_several_labels_count_by_cell(logits: tuple[Tensor, Tensor]) -> None:
    student, teachers = logits
    nan = float("nan")
    labels = torch.tensor([[1.0, 0, 1], [0, nan, 0], [nan] * 3, [nan] * 3])
    inputs = {"input_ids": IDS, "labels": labels, ROW: torch.tensor([0, 1, 2, -1])}
    loss = loss_of(BceWithLogits(), teachers[:1], "multi_label_classification", temperature=1.0)
    total, _ = loss.total(Given(student), inputs)
    p, q = teachers[0, :3].sigmoid(), student[:3].sigmoid()
    kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
    here = ~labels.isnan()
    bce = F.binary_cross_entropy_with_logits(student[here], labels[here], reduction="sum")
    torch.testing.assert_close(total, torch.stack([kl, bce]) / 2)
    assert loss.denominator(inputs).tolist() == [9, 5]


def test_numbers_are_taught_by_their_square(logits: tuple[Tensor, Tensor]) -> None:
    student, teachers = logits[0][:, :1], logits[1][..., :1]
    labels = torch.tensor([1.0, 2.0, float("nan"), 0.5])
    inputs = {"input_ids": IDS, "labels": labels, ROW: torch.arange(4)}
    loss = loss_of(MeanSquaredError(), teachers, "regression")
    total, _ = loss.total(Given(student), inputs)
    apart = (student - teachers.mean(0)).square().sum()
    known = [0, 1, 3]
    error = (student[known, 0] - labels[known]).square().sum()
    torch.testing.assert_close(total, torch.stack([apart, error]) / 2)
    assert loss.denominator(inputs).tolist() == [4, 3]


def test_vocabularies_that_are_padded_are_compared_where_both_have_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 4, 6, generator=generator)
    teacher = torch.randn(1, 2, 4, 9, generator=generator)
    labels = torch.tensor([[1, -100, 2, 3], [-100, -100, 0, 5]])
    inputs = {"input_ids": labels.clamp(min=0), "labels": labels}
    loss = loss_of(CrossEntropy(), teacher, None, alpha=1.0, temperature=1.0)
    total, _ = loss.total(Given(student), inputs)
    here = labels != -100
    p = teacher[0, here][:, :6].softmax(-1)
    q = student[here].softmax(-1)
    torch.testing.assert_close(total[0], (p * (p / q).log()).sum())
    assert loss.denominator(inputs).tolist() == [5]


def test_hidden_states_of_other_widths_meet_through_a_layer_each() -> None:
    """Over 5 real tokens, by hand; the layers that are drawn follow the seed."""
    generator = torch.Generator().manual_seed(0)
    mine = tuple(torch.randn(2, 3, 4, generator=generator) for _ in range(3))
    theirs = tuple(torch.randn(2, 3, 6, generator=generator) for _ in range(4))
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    options = {"hidden_states": {1: 2, 2: 3}, "hidden_states_weight": 0.3, "alpha": 0.0}
    plain = loss_of(CrossEntropy(), torch.zeros(1, 2, 3), None, **options)
    assert plain.teacher is not None
    loss, same, other = (
        plain.with_teacher(plain.teacher, projections_of(plain.section, 4, 6, seed))
        for seed in (3, 3, 4)
    )
    assert plain.layers() is None, "a copy has the layers"
    assert torch.equal(loss.projections["2"].weight, same.projections["2"].weight)
    assert not torch.equal(loss.projections["2"].weight, other.projections["2"].weight)
    assert not torch.equal(loss.projections["1"].weight, loss.projections["2"].weight)
    inside = loss._inside(
        SimpleNamespace(hidden_states=mine), Answer(hidden_states=theirs), mask.bool()
    )
    by_hand = torch.zeros(())
    for student, teacher in ((1, 2), (2, 3)):
        weight, bias = loss.projections[str(student)].weight, loss.projections[str(student)].bias
        apart = mine[student] @ weight.T + bias - theirs[teacher]
        by_hand = by_hand + apart.square().mean(-1)[mask.bool()].sum() / 2
    torch.testing.assert_close(inside[0], 0.3 * by_hand)
