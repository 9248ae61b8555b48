# SPDX-License-Identifier: Apache-2.0
"""Metrics of predicted numbers, on scikit-learn and SciPy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def regression_metrics(predicted: Floats, labels: Floats) -> dict[str, float]:
    """Return the loss (the mean squared error), RMSE, MAE, R2, Pearson's and Spearman's r.

    A correlation with a constant is not defined and given as 0, as is the R2 of a single row.

    Args:
        predicted: Numbers, shape ``(rows,)``.
        labels: Numbers, shape ``(rows,)``.
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    predicted, labels = predicted.astype(np.float64), labels.astype(np.float64)
    mse = float(mean_squared_error(labels, predicted))
    varies = len(np.unique(predicted)) > 1 and len(np.unique(labels)) > 1
    return {
        "loss": mse,
        "mse": mse,
        "rmse": mse**0.5,
        "mae": float(mean_absolute_error(labels, predicted)),
        "r2": float(r2_score(labels, predicted)) if len(labels) > 1 else 0.0,
        "pearson": float(pearsonr(labels, predicted).statistic) if varies else 0.0,
        "spearman": float(spearmanr(labels, predicted).statistic) if varies else 0.0,
    }
