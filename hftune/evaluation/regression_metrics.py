# SPDX-License-Identifier: Apache-2.0
"""Metrics of predicted numbers, computed by scikit-learn and SciPy."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def regression_metrics(predicted: Floats, labels: Floats) -> dict[str, float]:
    """Return the loss (the mean squared error), RMSE, MAE, R2, Pearson's and Spearman's r.

    A correlation with a constant and the R2 of a single row are undefined and returned as 0.

    Args:
        predicted: Numbers, shape ``(rows,)``.
        labels: Numbers, shape ``(rows,)``.

    Example:
        >>> metrics = regression_metrics(np.array([1.0, 2.0, 6.0]), np.array([1.0, 2.0, 3.0]))
        >>> metrics["mse"], metrics["mae"], metrics["spearman"]
        (3.0, 1.0, 1.0)
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
