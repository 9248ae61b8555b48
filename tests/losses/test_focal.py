# SPDX-License-Identifier: Apache-2.0
"""Focal loss: the formula in plain steps, its two special cases, weights, and far logits."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hftune.core.errors import HftuneError
from hftune.core.registry import MULTI_LABEL
from hftune.losses.focal import Focal, binary_focal_loss, focal_loss
from hftune.losses.loss import LabelStats
from tests.losses.given import Given

WEIGHTS = [0.5, 2.0, 1.0]
FACTS = LabelStats(classes=["a", "b", "c"], counts=[6, 3, 1], rows=10)
SEVERAL = LabelStats(classes=["a", "b", "c"], counts=[6, 3, 1], rows=10, problem_type=MULTI_LABEL)
LABELS = torch.tensor([0, 1, 2, 1, -100])
CELLS = torch.tensor([[1.0, 0, 0], [0, 1, math.nan], [0, 0, 0], [1, 1, 1], [math.nan] * 3])


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def mean(loss: Focal, logits: Tensor, labels: Tensor) -> Tensor:
    batch = {"labels": labels}
    return loss.total(Given(logits), batch)[0] / loss.denominator(batch)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_of_one_label(logits: Tensor, gamma: float, weights: list[float] | None) -> None:
    loss = Focal(gamma=gamma, class_weights=weights)
    loss.fit(FACTS)
    rows, divisor = [], 0.0
    for row, label in list(zip(logits, LABELS.tolist(), strict=True))[:4]:
        p = row.exp()[label] / row.exp().sum()
        weight = 1.0 if weights is None else weights[label]
        rows.append(weight * (1 - p) ** gamma * -p.log())
        divisor += weight
    torch.testing.assert_close(mean(loss, logits, LABELS), sum(rows) / divisor)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_of_several_labels(logits: Tensor, gamma: float, weights: list[float] | None) -> None:
    loss = Focal(gamma=gamma, pos_weight=weights)
    loss.fit(SEVERAL)
    cells = []
    for i, j in ((i, j) for i in range(5) for j in range(3) if not CELLS[i, j].isnan()):
        p = 1 / (1 + (-logits[i, j]).exp())
        p, weight = (p, weights[j] if weights else 1.0) if CELLS[i, j] else (1 - p, 1.0)
        cells.append(weight * (1 - p) ** gamma * -p.log())
    torch.testing.assert_close(mean(loss, logits, CELLS), sum(cells) / len(cells))


def test_gamma_zero_is_cross_entropy(logits: Tensor) -> None:
    weight = torch.tensor(WEIGHTS, dtype=torch.float64)
    loss = Focal(gamma=0.0, class_weights=WEIGHTS)
    loss.fit(FACTS)
    expected = F.cross_entropy(logits, LABELS, weight=weight)
    torch.testing.assert_close(mean(loss, logits, LABELS), expected)
    loss = Focal(gamma=0.0, pos_weight=WEIGHTS)
    loss.fit(SEVERAL)
    full = CELLS.nan_to_num().double()
    expected = F.binary_cross_entropy_with_logits(logits, full, pos_weight=weight)
    torch.testing.assert_close(mean(loss, logits, full), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_far_logits_have_finite_gradients(gamma: float) -> None:
    far = torch.tensor([[300.0, 0.0, -300.0], [-300.0, 0.0, 300.0]], requires_grad=True)
    focal_loss(far, torch.tensor([0, 0]), gamma).sum().backward()
    assert far.grad.isfinite().all()
    # Sure and wrong: the whole nll counts, so its gradient is that of cross-entropy.
    torch.testing.assert_close(far.grad[1], torch.tensor([-1.0, 0.0, 1.0]))
    far = torch.tensor([300.0, -300.0, -300.0], requires_grad=True)
    binary_focal_loss(far, torch.tensor([1.0, 1.0, 0.0]), gamma).sum().backward()
    torch.testing.assert_close(far.grad, torch.tensor([0.0, -1.0, 0.0]))


def test_positions_of_a_language_model(logits: Tensor) -> None:
    labels = torch.tensor([[9, 0, -100, 2, 1]])
    loss = Focal(gamma=2.0)
    loss.fit(LabelStats(classes=["a", "b", "c"], counts=[1, 1, 1], causal=True))
    expected = focal_loss(logits[[0, 2, 3]], torch.tensor([0, 2, 1]), 2.0).mean()
    torch.testing.assert_close(mean(loss, logits[None], labels), expected)


@pytest.mark.parametrize(
    ("options", "stats", "message"),
    [
        ({"class_weights": "balanced"}, SEVERAL, "loss.class_weights: classes do not compete"),
        ({"pos_weight": "balanced"}, FACTS, "loss.pos_weight: it weighs the positives"),
        ({"pos_weight": [1.0, -1.0, 1.0]}, SEVERAL, "above zero"),
        ({"class_weights": {"z": 1.0}}, FACTS, "unknown labels z"),
        ({}, LabelStats(classes=["a"], counts=[1], label_smoothing=0.1), "label_smoothing_factor"),
    ],
)
def test_refused(options: dict[str, Any], stats: LabelStats, message: str) -> None:
    with pytest.raises(HftuneError, match=message):
        Focal(**options).fit(stats)
