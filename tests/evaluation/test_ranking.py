# SPDX-License-Identifier: Apache-2.0
"""ROC-AUC is the share of pairs in the right order; average precision by hand."""

import numpy as np
import pytest

from hftune.evaluation.ranking import average_precision, ranking_metrics


def test_area_is_the_share_of_ordered_pairs() -> None:
    generator = np.random.default_rng(1)
    truth, scores = generator.integers(0, 2, (40, 1)), generator.normal(size=(40, 1))
    inside, outside = scores[truth == 1], scores[truth == 0]
    pairs = (inside[:, None] > outside[None]).mean()
    assert ranking_metrics(truth, scores)["roc_auc"] == pytest.approx(pairs)


def test_average_precision_by_hand() -> None:
    # Right rows at ranks 1 and 3: precisions of 1 and 2/3.
    truth, scores = np.array([1, 0, 1, 0]), np.array([4.0, 3.0, 2.0, 1.0])
    assert average_precision(truth, scores) == pytest.approx((1 + 2 / 3) / 2)


def test_classes_that_cannot_be_ranked_are_left_out() -> None:
    truth = np.array([[1, 0, 1], [0, 0, 1]])
    scores = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 3.0]])
    assert ranking_metrics(truth, scores) == {"roc_auc": 1.0, "average_precision": 1.0}
    assert ranking_metrics(truth[:, 1:], scores[:, 1:]) == {}
