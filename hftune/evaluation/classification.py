# SPDX-License-Identifier: Apache-2.0
"""Metrics of a classifier, overall and for each class, computed by scikit-learn."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from hftune.evaluation.ranking import ranking_metrics

Ids = NDArray[np.integer]


def classification_metrics(
    scores: NDArray[np.floating], labels: Ids, predicted: Ids | None = None
) -> dict[str, float]:
    """Return loss, accuracy, MCC, the averaged precision, recall and F1, and ranking metrics.

    Averages run over the classes that occur among labels or predictions, scikit-learn's default.

    Args:
        scores: Logits, shape ``(rows, classes)``.
        labels: Class ids, shape ``(rows,)``.
        predicted: Class ids, shape ``(rows,)``; the highest score of each row if None.

    Example:
        >>> scores = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
        >>> metrics = classification_metrics(scores, np.array([0, 1, 1]))
        >>> round(metrics["accuracy"], 4), round(metrics["f1_macro"], 4)
        (0.6667, 0.6667)
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    predicted = scores.argmax(-1) if predicted is None else predicted
    result = {
        "loss": log_loss(scores, labels),
        "accuracy": float(accuracy_score(labels, predicted)),
        "mcc": _mcc(labels, predicted),
    }
    for average in ("macro", "weighted"):
        precision, recall, f1, _ = precision_recall_fscore_support(
            labels, predicted, average=average, zero_division=0
        )
        result |= {
            f"precision_{average}": float(precision),
            f"recall_{average}": float(recall),
            f"f1_{average}": float(f1),
        }
    return {**result, **_ranking(scores, labels)}


def log_loss(scores: NDArray[np.floating], labels: Ids) -> float:
    """Return the mean of ``-log p(label)``, in nats.

    Example:
        >>> shares = np.array([[0.5, 0.5], [0.25, 0.75]])  # of the labels: 0.5 and 0.75
        >>> round(log_loss(np.log(shares), np.array([0, 1])), 4)
        0.4904
    """
    shares = log_softmax(scores.astype(np.float64), -1)
    return float(-shares[np.arange(len(labels)), labels].mean())


def _ranking(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> dict[str, float]:
    """Rank each class against the rest by probability; with two classes only the second."""
    shares = softmax(scores.astype(np.float64), -1)
    truth = np.eye(scores.shape[1], dtype=int)[labels]
    if scores.shape[1] == 2:
        truth, shares = truth[:, 1:], shares[:, 1:]
    return ranking_metrics(truth, shares)


def _mcc(labels: NDArray[np.integer], predicted: NDArray[np.integer]) -> float:
    """Return Matthews' correlation; 0 for a single class, where scikit-learn would warn."""
    from sklearn.metrics import matthews_corrcoef

    alone = len(np.union1d(labels, predicted)) == 1
    return 0.0 if alone else float(matthews_corrcoef(labels, predicted))


def per_class_metrics(
    predicted: Ids, labels: Ids, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 and support (rows of that class) by label name.

    Example:
        >>> scores = per_class_metrics(np.array([0, 1, 1]), np.array([0, 0, 1]), ["no", "yes"])
        >>> scores["yes"]
        {'precision': 0.5, 'recall': 1.0, 'f1': 0.6666666666666666, 'support': 1.0}
    """
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(names)), zero_division=0
    )
    keys = ("precision", "recall", "f1", "support")
    return {
        name: {key: float(column[index]) for key, column in zip(keys, columns, strict=True)}
        for index, name in enumerate(names)
    }
