# SPDX-License-Identifier: Apache-2.0
"""Sum over denominator is torch's own loss; rows without a number are out."""

import math

import pytest
import torch
from torch import nn

from hftune.core.errors import HftuneError
from hftune.losses.loss import LabelStats
from hftune.losses.regression import Huber, MeanAbsoluteError, MeanSquaredError, Regression
from tests.losses.given import Given

ALL = [
    (MeanSquaredError(), nn.MSELoss()),
    (MeanAbsoluteError(), nn.L1Loss()),
    (Huber(), nn.HuberLoss()),
    (Huber(delta=2.5), nn.HuberLoss(delta=2.5)),
]


@pytest.mark.parametrize(("loss", "reference"), ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch(loss: Regression, reference: nn.Module, dtype: torch.dtype) -> None:
    logits = torch.tensor([[0.5], [-2.0], [7.0], [3.5]], dtype=dtype)
    labels = torch.tensor([1.0, -100.0, 7.0, 1.5])
    total, _ = loss.total(Given(logits), {"labels": labels})
    assert total.dtype == dtype
    mean = total / loss.denominator({"labels": labels})
    torch.testing.assert_close(mean.to(dtype), reference(logits[:, 0], labels.to(dtype)))


def test_huber_by_hand() -> None:
    """Half the square within delta, a line beyond it."""
    logits, labels = torch.tensor([[0.5], [3.0]]), torch.tensor([0.0, 0.0])
    total, _ = Huber(delta=2.0).total(Given(logits), {"labels": labels})
    assert total == 0.5 * 0.25 + 2.0 * (3.0 - 1.0)


@pytest.mark.parametrize("loss", [loss for loss, _ in ALL])
def test_a_row_without_number_counts_nothing(loss: Regression) -> None:
    model, labels = Given(torch.tensor([[0.5], [9.0]])), torch.tensor([1.0, math.nan])
    total, _ = loss.total(model, {"labels": labels})
    assert loss.denominator({"labels": labels}) == 1
    (gradient,) = torch.autograd.grad(total, model.logits)
    assert gradient[0] != 0
    assert gradient[1] == 0


def test_label_smoothing_is_refused() -> None:
    with pytest.raises(HftuneError, match="label_smoothing_factor"):
        MeanAbsoluteError().fit(LabelStats(classes=[], counts=[], label_smoothing=0.1))
