# SPDX-License-Identifier: Apache-2.0
"""How well scores rank rows, whatever the threshold: ROC-AUC and average precision."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def ranking_metrics(truth: NDArray[Any], scores: NDArray[Any]) -> dict[str, float]:
    """Return ROC-AUC and average precision, each the mean over the classes that can have it.

    A class without rows of its own, or with all of them, has neither and is left out of the mean;
    where no class has them, both are absent.

    Args:
        truth: 0 or 1, shape ``(rows, classes)``.
        scores: Higher for more likely, the same shape.
    """
    from sklearn.metrics import roc_auc_score

    able = [i for i in range(truth.shape[1]) if 0 < truth[:, i].sum() < len(truth)]
    if not able:
        return {}
    areas = [float(roc_auc_score(truth[:, i], scores[:, i])) for i in able]
    precisions = [average_precision(truth[:, i], scores[:, i]) for i in able]
    return {"roc_auc": float(np.mean(areas)), "average_precision": float(np.mean(precisions))}


def average_precision(truth: NDArray[Any], scores: NDArray[Any]) -> float:
    """Return the average precision of one class, 0 where it has no row."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, scores)) if truth.any() else 0.0
