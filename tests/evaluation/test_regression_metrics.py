# SPDX-License-Identifier: Apache-2.0
"""Figures by hand and by definition."""

import numpy as np
import pytest

from hftune.evaluation.regression_metrics import regression_metrics


def test_by_hand() -> None:
    labels, predicted = np.array([1.0, 2.0, 3.0, 6.0]), np.array([2.0, 2.0, 5.0, 4.0])
    found = regression_metrics(predicted, labels)
    assert found["loss"] == found["mse"] == pytest.approx((1 + 0 + 4 + 4) / 4)
    assert found["rmse"] == pytest.approx(1.5)
    assert found["mae"] == pytest.approx((1 + 0 + 2 + 2) / 4)
    spread = ((labels - 3) ** 2).sum()
    assert found["r2"] == pytest.approx(1 - 9 / spread)
    assert found["pearson"] == pytest.approx(np.corrcoef(labels, predicted)[0, 1])
    ranks = np.corrcoef([1, 2, 3, 4], [1.5, 1.5, 4, 3])[0, 1]
    assert found["spearman"] == pytest.approx(ranks)


def test_what_is_constant_has_no_correlation() -> None:
    found = regression_metrics(np.ones(3), np.array([1.0, 2.0, 3.0]))
    assert found["pearson"] == found["spearman"] == 0


def test_single_row() -> None:
    assert regression_metrics(np.array([1.0]), np.array([3.0]))["r2"] == 0
