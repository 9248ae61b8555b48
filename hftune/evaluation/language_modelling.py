# SPDX-License-Identifier: Apache-2.0
"""Metrics of a language model from two numbers per row, so that no logits are kept."""

import math

import numpy as np
from numpy.typing import NDArray


def language_modelling_metrics(
    losses: NDArray[np.floating], tokens: NDArray[np.integer]
) -> dict[str, float]:
    """Return the token-weighted loss in nats and its perplexity.

    Args:
        losses: Summed loss of each row, shape ``(rows,)``.
        tokens: Number of trained tokens of each row, shape ``(rows,)``.

    Example:
        >>> metrics = language_modelling_metrics(np.array([6.0, 2.0]), np.array([3, 1]))
        >>> metrics["loss"], round(metrics["perplexity"], 3), metrics["tokens"]
        (2.0, 7.389, 4)
    """
    total, count = losses.astype(np.float64).sum(), int(tokens.sum())
    loss = float(total / count) if count else math.nan
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": count}
