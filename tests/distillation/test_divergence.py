# SPDX-License-Identifier: Apache-2.0
"""Distances of a student from its teachers against torch's own terms and sums by hand."""

import pytest
import torch
import torch.nn.functional as F

from hftune.distillation.divergence import (
    attention_divergence,
    binary_divergence,
    divergence,
    hidden_distance,
    target_log_probs,
    top_k_divergence,
    top_k_of,
)


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    """A student's ``(7, 11)`` and two teachers' ``(2, 7, 11)``, float64."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(7, 11, generator=generator, dtype=torch.float64) * 3
    return student, torch.randn(2, 7, 11, generator=generator, dtype=torch.float64) * 3


def test_the_target_is_the_mean_of_the_teachers_softmax(
    logits: tuple[torch.Tensor, torch.Tensor],
) -> None:
    _, teachers = logits
    target = target_log_probs(teachers, 3.0)
    torch.testing.assert_close(target.exp(), (teachers / 3).softmax(-1).mean(0))


def test_divergence_is_the_sum_by_hand(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, teachers = logits
    p, q = (teachers[0] / 3).softmax(-1), (student / 3).softmax(-1)
    found = divergence(student, target_log_probs(teachers[:1], 3.0), 3.0)
    torch.testing.assert_close(found, 9 * (p * (p / q).log()).sum())
    same = divergence(teachers[0], target_log_probs(teachers[:1], 3.0), 3.0)
    assert abs(float(same)) < 1e-12


def test_the_gradient_keeps_its_scale_at_any_temperature(
    logits: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """At a high temperature it is that of half the squared difference of centred logits."""
    student, teachers = logits
    sizes = []
    for temperature in (20.0, 200.0):
        leaf = student.clone().requires_grad_()
        divergence(leaf, target_log_probs(teachers[:1], temperature), temperature).backward()
        sizes.append(leaf.grad)
    apart = student - teachers[0]
    limit = (apart - apart.mean(-1, keepdim=True)) / student.shape[-1]
    torch.testing.assert_close(sizes[1], limit, rtol=0.1, atol=0.01)
    assert 0.8 < float(sizes[0].norm() / sizes[1].norm()) < 1.2


def test_top_k_joins_the_other_classes(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    """It is the divergence of the distributions in which all others are one class."""
    student, teachers = logits
    target = target_log_probs(teachers, 2.0)
    top = top_k_of(target, 4)
    torch.testing.assert_close(top.log_probs.exp().sum(1) + top.rest.exp(), torch.ones(7).double())
    q = (student / 2).softmax(-1).gather(1, top.classes)
    p = top.log_probs.exp()
    by_hand = (p * (p / q).log()).sum(1)
    rest_p, rest_q = 1 - p.sum(1), 1 - q.sum(1)
    by_hand = by_hand + rest_p * (rest_p / rest_q).log()
    found = top_k_divergence(student, top, 2.0)
    torch.testing.assert_close(found, 4 * by_hand.sum())


def test_top_k_misses_what_is_told_of_the_rest_and_no_more(
    logits: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Whole divergence = that of the top + rest * divergence inside the rest."""
    student, teachers = logits
    target = target_log_probs(teachers, 1.0)
    whole = divergence(student, target, 1.0)
    last = torch.tensor(0.0)
    for k in (1, 4, 10):
        top = top_k_of(target, k)
        found = top_k_divergence(student, top, 1.0)
        inside = torch.zeros((), dtype=torch.float64)
        for row in range(7):
            others = [c for c in range(11) if c not in top.classes[row].tolist()]
            p = target[row, others].softmax(-1)
            q = student[row, others].softmax(-1)
            inside += top.rest[row].exp() * (p * (p / q).log()).sum()
        torch.testing.assert_close(found + inside, whole)
        assert last <= found <= whole + 1e-12
        last = found


def test_a_rest_of_no_probability_gives_no_nan() -> None:
    target = torch.tensor([[0.0, -1e4, -1e4, -1e4]]).log_softmax(-1)
    student = torch.tensor([[0.3, 0.1, 0.0, 0.2]], requires_grad=True)
    found = top_k_divergence(student, top_k_of(target, 1), 1.0)
    found.backward()
    torch.testing.assert_close(found.detach(), -student.detach().log_softmax(-1)[0, 0])
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_binary_divergence_is_that_of_each_cell(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, teachers = logits
    p, q = (teachers / 2).sigmoid().mean(0), (student / 2).sigmoid()
    entropy = F.binary_cross_entropy(p, p, reduction="sum")
    by_hand = 4 * (F.binary_cross_entropy(q, p, reduction="sum") - entropy)
    torch.testing.assert_close(binary_divergence(student, teachers, 2.0), by_hand)
    assert abs(float(binary_divergence(teachers[0], teachers[:1], 2.0))) < 1e-12


def test_hidden_states_are_compared_token_by_token() -> None:
    student, teacher = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    teacher[1, 2] = 3.0
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert hidden_distance(student, teacher, mask).item() == 4 * 1 + 9
    assert hidden_distance(teacher, teacher, mask).item() == 0


def test_attention_is_compared_by_its_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 2, 3, 5, 5, generator=generator)
    scores[..., 4] = -torch.inf  # masked in both
    p, q = scores.softmax(-1)
    mask = torch.tensor([[True] * 4 + [False]] * 2)
    by_hand = F.kl_div(q[..., :4].log(), p[..., :4], reduction="none").sum(-1).mean(1)[mask].sum()
    torch.testing.assert_close(attention_divergence(q, p, mask), by_hand)
    assert attention_divergence(p, p, mask).item() == 0
