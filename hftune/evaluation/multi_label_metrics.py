# SPDX-License-Identifier: Apache-2.0
"""Metrics of multi-label classification, computed by scikit-learn."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from hftune.evaluation.ranking import average_precision, ranking_metrics

Floats = NDArray[np.floating]


def multi_label_metrics(scores: Floats, labels: Floats, thresholds: Floats) -> dict[str, float]:
    """Return loss, exact match (``accuracy``), Hamming loss, F1 scores and ranking metrics.

    The loss is the mean binary cross-entropy over all cells with a label. The other metrics treat
    a label that is NaN as absent.

    Args:
        scores: Logits, shape ``(rows, labels)``.
        labels: 0 or 1, the same shape.
        thresholds: Smallest probability at which a label is predicted, shape ``(labels,)``.

    Example:
        >>> scores, labels = np.array([[1.0, -1.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> multi_label_metrics(scores, labels, np.array([0.5, 0.5]))["accuracy"]
        0.5
    """
    from sklearn.metrics import (
        accuracy_score,
        f1_score,
        hamming_loss,
        precision_score,
        recall_score,
    )

    known = ~np.isnan(labels)
    logits = scores.astype(np.float64)[known]
    losses = np.logaddexp(0, logits) - labels[known] * logits
    truth = np.nan_to_num(labels).astype(int)
    given = (expit(scores) >= thresholds).astype(int)
    result = {
        "loss": float(losses.mean()),
        "accuracy": float(accuracy_score(truth, given)),
        "hamming_loss": float(hamming_loss(truth, given)),
        "precision_micro": float(precision_score(truth, given, average="micro", zero_division=0)),
        "recall_micro": float(recall_score(truth, given, average="micro", zero_division=0)),
    }
    for average in ("micro", "macro", "weighted", "samples"):
        f1 = f1_score(truth, given, average=average, zero_division=0)
        result[f"f1_{average}"] = float(f1)
    return {**result, **ranking_metrics(truth, scores)}


def per_label_metrics(
    scores: Floats, labels: Floats, names: Sequence[str], thresholds: Floats
) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1, support, average precision and threshold by label name.

    Example:
        >>> scores, labels = np.array([[1.0, -1.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> found = per_label_metrics(scores, labels, ["new", "urgent"], np.array([0.5, 0.5]))
        >>> found["new"]["precision"], found["urgent"]["precision"]
        (0.5, 1.0)
    """
    from sklearn.metrics import precision_recall_fscore_support

    truth = np.nan_to_num(labels).astype(int)
    given = (expit(scores) >= thresholds).astype(int)
    columns = precision_recall_fscore_support(truth, given, average=None, zero_division=0)
    keys = ("precision", "recall", "f1", "support")
    return {
        name: {
            **{key: float(column[i]) for key, column in zip(keys, columns, strict=True)},
            "average_precision": average_precision(truth[:, i], scores[:, i]),
            "threshold": float(thresholds[i]),
        }
        for i, name in enumerate(names)
    }
