# SPDX-License-Identifier: Apache-2.0
"""Metrics of a language model from two numbers a row, so that no logits are ever kept."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def language_modelling_metrics(sums: NDArray[np.floating[Any]]) -> dict[str, float]:
    """Return the token-weighted loss in nats and its perplexity.

    Args:
        sums: Summed loss and number of trained tokens of each row, shape ``(rows, 2)``.
    """
    total, tokens = sums.astype(np.float64).sum(0)
    loss = float(total / tokens) if tokens else math.nan
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": int(tokens)}
