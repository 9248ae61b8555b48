# SPDX-License-Identifier: Apache-2.0
"""Sum over denominator is torch's BCEWithLogitsLoss, whatever the split; NaN cells are out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hftune.core.errors import HftuneError
from hftune.losses.bce_with_logits import BceWithLogits
from hftune.losses.loss import LabelStats
from tests.losses.given import Given

FACTS = LabelStats(classes=["a", "b", "c"], counts=[2, 8, 0], rows=10)


def fitted(pos_weight: Any = None) -> BceWithLogits:
    loss = BceWithLogits(pos_weight=pos_weight)
    loss.fit(FACTS)
    return loss


@pytest.fixture
def logits() -> Tensor:
    return 5 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 3.0]])
def test_equals_torch_in_any_split(logits: Tensor, weight: list[float] | None) -> None:
    reference = nn.BCEWithLogitsLoss(pos_weight=None if weight is None else torch.tensor(weight))
    expected = reference(logits, LABELS)
    loss = fitted(weight)
    for size in (4, 3, 1):
        parts = [
            (loss.total(Given(part), {"labels": labels})[0], loss.denominator({"labels": labels}))
            for part, labels in zip(logits.split(size), LABELS.split(size), strict=True)
        ]
        total = sum(total for total, _ in parts) / sum(number for _, number in parts)
        torch.testing.assert_close(total.float(), expected)


def test_a_cell_without_label_counts_nothing(logits: Tensor) -> None:
    labels = LABELS.clone()
    labels[0, 1] = labels[3] = math.nan
    model, loss = Given(logits), fitted([1.0, 2.0, 4.0])
    total, _ = loss.total(model, {"labels": labels})
    expected = nn.functional.binary_cross_entropy_with_logits(
        logits, LABELS, pos_weight=torch.tensor([1.0, 2.0, 4.0]), reduction="none"
    )
    torch.testing.assert_close(total, expected[~labels.isnan()].sum())
    assert loss.denominator({"labels": labels}) == 8
    (gradient,) = torch.autograd.grad(total, model.logits)
    assert gradient[3].eq(0).all()
    assert gradient[0, 1] == 0


def test_balanced_is_negatives_over_positives() -> None:
    # 2 of 10, 8 of 10; a label without rows counts as if it had one.
    assert fitted("balanced").weight.tolist() == [8 / 2, 2 / 8, 10 / 1]


def test_weights_by_name() -> None:
    assert fitted({"c": 3.0}).weight.tolist() == [1.0, 1.0, 3.0]


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ({"d": 1.0}, "unknown labels d"),
        ([1.0, 2.0], "2 weights for 3 labels"),
        ([1.0, 0.0, 1.0], "above zero"),
        ([1.0, math.inf, 1.0], "finite"),
    ],
)
def test_bad_weights(weight: Any, message: str) -> None:
    with pytest.raises(HftuneError, match=message):
        fitted(weight)


def test_label_smoothing_is_refused() -> None:
    stats = LabelStats(classes=["a"], counts=[1], rows=2, label_smoothing=0.1)
    with pytest.raises(HftuneError, match="label_smoothing_factor"):
        BceWithLogits().fit(stats)
