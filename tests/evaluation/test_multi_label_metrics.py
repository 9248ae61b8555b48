# SPDX-License-Identifier: Apache-2.0
"""Every figure is scikit-learn's, on probabilities held against thresholds."""

import numpy as np
import pytest
from sklearn import metrics as sk

from hftune.evaluation.multi_label_metrics import multi_label_metrics, per_label_metrics

GENERATOR = np.random.default_rng(0)
LABELS = (GENERATOR.random((60, 4)) < [0.5, 0.2, 0.7, 0.0]).astype(np.float32)
SCORES = (GENERATOR.normal(size=(60, 4)) + LABELS).astype(np.float32)
THRESHOLDS = np.array([0.5, 0.3, 0.7, 0.5])


def given() -> np.ndarray:
    return (1 / (1 + np.exp(-SCORES)) >= THRESHOLDS).astype(int)


def test_whole() -> None:
    found = multi_label_metrics(SCORES, LABELS, THRESHOLDS)
    truth, shares = LABELS.astype(int), 1 / (1 + np.exp(-SCORES.astype(np.float64)))
    cells = sk.log_loss(truth.ravel(), shares.ravel())
    expected = {
        "loss": cells,
        "accuracy": sk.accuracy_score(truth, given()),
        "hamming_loss": sk.hamming_loss(truth, given()),
        "precision_micro": sk.precision_score(truth, given(), average="micro"),
        "recall_micro": sk.recall_score(truth, given(), average="micro"),
        # The last label has no row, so neither is defined for it.
        "roc_auc": sk.roc_auc_score(truth[:, :3], shares[:, :3], average="macro"),
        "average_precision": sk.average_precision_score(truth[:, :3], shares[:, :3]),
    }
    for average in ("micro", "macro", "weighted", "samples"):
        f1 = sk.f1_score(truth, given(), average=average, zero_division=0)
        expected[f"f1_{average}"] = f1
    assert found == pytest.approx(expected)


def test_cells_without_label_are_out_of_the_loss() -> None:
    labels = np.array([[1.0, np.nan], [0.0, 1.0]])
    scores = np.log(np.array([[3.0, 99.0], [3.0, 3.0]]))  # probabilities of 3/4
    found = multi_label_metrics(scores, labels, np.array([0.5, 0.5]))
    assert found["loss"] == pytest.approx(-(2 * np.log(0.75) + np.log(0.25)) / 3)


def test_per_label() -> None:
    found = per_label_metrics(SCORES, LABELS, ["a", "b", "c", "d"], THRESHOLDS)
    for index, name in enumerate("abcd"):
        truth, predicted = LABELS[:, index].astype(int), given()[:, index]
        row = found[name]
        assert row["f1"] == pytest.approx(sk.f1_score(truth, predicted, zero_division=0))
        assert row["support"] == truth.sum()
        assert row["threshold"] == THRESHOLDS[index]
    expected = sk.average_precision_score(LABELS[:, 1], SCORES[:, 1])
    assert found["b"]["average_precision"] == pytest.approx(expected)
    assert found["d"]["average_precision"] == 0
