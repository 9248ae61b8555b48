# SPDX-License-Identifier: Apache-2.0
"""Sum over denominator is torch's MSELoss; rows without a number are out."""

import math

import pytest
import torch
from torch import nn

from hftune.core.errors import HftuneError
from hftune.losses.contract import LabelFacts
from hftune.losses.mse import MeanSquaredError
from tests.losses.given import Given


def test_equals_torch() -> None:
    logits, labels = torch.tensor([[0.5], [-2.0], [7.0]]), torch.tensor([1.0, -100.0, 7.0])
    loss = MeanSquaredError()
    total, _ = loss.total(Given(logits), {"labels": labels})
    mean = total / loss.denominator({"labels": labels})
    torch.testing.assert_close(mean.float(), nn.MSELoss()(logits[:, 0], labels))


def test_a_row_without_number_counts_nothing() -> None:
    model, labels = Given(torch.tensor([[0.5], [9.0]])), torch.tensor([1.0, math.nan])
    loss = MeanSquaredError()
    total, _ = loss.total(model, {"labels": labels})
    assert total == 0.25
    assert loss.denominator({"labels": labels}) == 1
    (gradient,) = torch.autograd.grad(total, model.logits)
    assert gradient.tolist() == [[-1.0], [0.0]]


def test_label_smoothing_is_refused() -> None:
    with pytest.raises(HftuneError, match="label_smoothing_factor"):
        MeanSquaredError().fit(LabelFacts(classes=[], counts=[], label_smoothing=0.1))
