# SPDX-License-Identifier: Apache-2.0
"""Ranking metrics, independent of thresholds: ROC-AUC and average precision."""

import numpy as np
from numpy.typing import NDArray


def ranking_metrics(truth: NDArray[np.integer], scores: NDArray[np.floating]) -> dict[str, float]:
    """Return ROC-AUC and average precision, averaged over the classes that define them.

    A class that is true in no row or in all rows defines neither and does not count. If no class
    defines them, the result is empty.

    Args:
        truth: 0 or 1, shape ``(rows, classes)``.
        scores: Higher for more likely, the same shape.

    Example:
        >>> ranking_metrics(np.array([[1], [0], [1]]), np.array([[0.9], [0.4], [0.6]]))
        {'roc_auc': 1.0, 'average_precision': 1.0}
    """
    from sklearn.metrics import roc_auc_score

    able = [i for i in range(truth.shape[1]) if 0 < truth[:, i].sum() < len(truth)]
    if not able:
        return {}
    areas = [float(roc_auc_score(truth[:, i], scores[:, i])) for i in able]
    precisions = [average_precision(truth[:, i], scores[:, i]) for i in able]
    return {"roc_auc": float(np.mean(areas)), "average_precision": float(np.mean(precisions))}


def average_precision(truth: NDArray[np.integer], scores: NDArray[np.floating]) -> float:
    """Return the average precision of one class; 0 for a class without rows.

    Example:
        >>> average_precision(np.array([0, 1]), np.array([0.9, 0.1]))  # the only true row is second
        0.5
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, scores)) if truth.any() else 0.0
