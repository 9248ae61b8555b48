# SPDX-License-Identifier: Apache-2.0
"""The cumulative log loss: torch's binary cross-entropy of sums, and what an order means."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hftune.core.errors import HftuneError
from hftune.losses.loss import LabelStats
from hftune.losses.ordinal import Ordinal, cumulative_log_loss
from tests.losses.given import Given


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 4, 2, 1, 3, 2])


def test_equals_binary_cross_entropy_of_each_threshold(logits: Tensor) -> None:
    shares = logits.softmax(1)
    expected = torch.zeros(6, dtype=torch.float64)
    for k in range(1, 5):
        reached = shares[:, k:].sum(1)
        expected += F.binary_cross_entropy(reached, (k <= LABELS).double(), reduction="none")
    torch.testing.assert_close(cumulative_log_loss(logits, LABELS), expected)


def test_two_classes_are_cross_entropy(logits: Tensor) -> None:
    labels = LABELS.clamp(max=1)
    expected = F.cross_entropy(logits[:, :2], labels, reduction="none")
    torch.testing.assert_close(cumulative_log_loss(logits[:, :2], labels), expected)


def test_far_off_costs_more() -> None:
    """The label is the lowest class; the model is as sure of the next one, and so on."""
    sure = 5 * torch.eye(5)
    losses = cumulative_log_loss(sure, torch.zeros(5, dtype=torch.long))
    assert losses.tolist() == sorted(losses.tolist())
    gaps = losses.diff()
    assert (gaps > 3).all()  # cross-entropy has the same for all that are wrong
    plain = F.cross_entropy(sure, torch.zeros(5, dtype=torch.long), reduction="none")
    assert plain[1:].max() - plain[1:].min() < 1e-6


def test_far_logits_have_finite_gradients() -> None:
    far = torch.tensor([[500.0, 0.0, -500.0], [-500.0, 0.0, 500.0]], requires_grad=True)
    cumulative_log_loss(far, torch.tensor([2, 0])).sum().backward()
    assert far.grad.isfinite().all()
    assert (far.grad[:, [0, 2]].abs() > 0.5).all()


def test_weights(logits: Tensor) -> None:
    weights = [1.0, 0.5, 2.0, 1.0, 0.0]
    loss = Ordinal(class_weights=weights)
    loss.fit(LabelStats(classes=list("12345"), counts=[1] * 5))
    batch = {"labels": LABELS}
    mean = loss.total(Given(logits), batch)[0] / loss.denominator(batch)
    each = torch.tensor(weights, dtype=torch.float64)[LABELS]
    expected = (each * cumulative_log_loss(logits, LABELS)).sum() / each.sum()
    torch.testing.assert_close(mean, expected)


def test_the_order_is_known_or_asked_for() -> None:
    Ordinal().fit(LabelStats(classes=["-1", "0", "2.5"], counts=[1] * 3))
    Ordinal().fit(LabelStats(classes=["poor", "fair", "good"], counts=[1] * 3, listed=True))
    with pytest.raises(HftuneError, match="needs the order") as caught:
        Ordinal().fit(LabelStats(classes=["fair", "good", "poor"], counts=[1] * 3))
    assert "data.label_names" in str(caught.value.hint)


def test_label_smoothing_is_refused() -> None:
    with pytest.raises(HftuneError, match="label_smoothing_factor"):
        Ordinal().fit(LabelStats(classes=["1", "2"], counts=[1, 1], label_smoothing=0.1))
