# SPDX-License-Identifier: Apache-2.0
"""Metrics of a classifier that gives any number of labels, on scikit-learn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from hftune.evaluation.ranking import average_precision, ranking_metrics

Floats = NDArray[np.floating[Any]]


def multi_label_metrics(scores: Floats, labels: Floats, thresholds: Floats) -> dict[str, float]:
    """Return loss, exact match (``accuracy``), Hamming loss, F1 and its kin, and ranking metrics.

    The loss is the mean binary cross-entropy over all cells. Cells whose label is NaN count as
    absent in all but the loss.

    Args:
        scores: Logits, shape ``(rows, labels)``.
        labels: 0 or 1, the same shape.
        thresholds: Probability from which on a label is given, shape ``(labels,)``.
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
    """Return label name -> precision, recall, F1, support, average precision and threshold."""
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
