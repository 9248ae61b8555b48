# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of a learning-rate range test.

Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, arXiv:1506.01186: the rate
rises while the loss is watched. Here it rises by equal factors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: The loss is beyond repair when its running mean is so many times the lowest one.
DIVERGED = 4.0
#: Weight of what was before in the running mean.
MEMORY = 0.8
#: Width of the smoothing window, in shares of the sweep.
WIDTH = 0.04


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """The result of a learning-rate sweep.

    Attributes:
        rates: The rate of each step.
        losses: The loss of the batch after that step.
        smoothed: The same, averaged over its neighbours.
        suggestion: The rate at which the loss fell fastest; None if it did not fall.
        lowest: The rate behind which the loss fell no more.
        diverged: The rate at which the sweep was stopped; None if it came to its end.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    lowest: float
    diverged: float | None


def rate_at(step: int, start: float, end: float, steps: int) -> float:
    """Return the rate of a step: equal factors from ``start`` to ``end``.

    Example:
        >>> [round(rate_at(step, 1e-4, 1.0, 5), 6) for step in range(5)]
        [0.0001, 0.001, 0.01, 0.1, 1.0]
    """
    return float(start * (end / start) ** (step / (steps - 1)))


class Divergence:
    """Tells as the sweep goes on whether the loss is lost."""

    def __init__(self) -> None:
        self.mean = self.best = math.inf

    def __call__(self, loss: float) -> bool:
        """Take one more loss."""
        if not math.isfinite(loss):
            return True
        known = math.isfinite(self.mean)
        self.mean = MEMORY * self.mean + (1 - MEMORY) * loss if known else loss
        self.best = min(self.best, self.mean)
        return self.mean > DIVERGED * self.best


def read_sweep(
    rates: Sequence[float], losses: Sequence[float], *, planned: int, stopped: bool
) -> RangeTest:
    """Read a sweep.

    Args:
        rates: The rate of each step.
        losses: The loss of the batch after each step, finite.
        planned: Steps that the whole sweep would have.
        stopped: Whether the loss diverged behind the last step.
    """
    smoothed = smooth(losses, max(1.0, WIDTH * planned))
    bottom = min(range(len(smoothed)), key=lambda i: smoothed[i])
    # The first few losses have few neighbours; a fall is looked for up to the lowest point.
    slopes = {
        i: (smoothed[i + 1] - smoothed[i - 1]) / math.log(rates[i + 1] / rates[i - 1])
        for i in range(1, min(bottom + 1, len(smoothed) - 1))
    }
    steepest = min(slopes, key=lambda i: slopes[i], default=None)
    fell = steepest is not None and slopes[steepest] < 0 and bottom > 0
    return RangeTest(
        rates=tuple(rates),
        losses=tuple(losses),
        smoothed=tuple(smoothed),
        suggestion=rates[steepest] if fell and steepest is not None else None,
        lowest=rates[bottom],
        diverged=rates[-1] if stopped else None,
    )


def smooth(values: Sequence[float], width: float) -> list[float]:
    """Return each value as a mean of its neighbours, weighted by a normal curve.

    A running mean would lag behind, and so find a fall at higher rates than it was.
    """
    reach = math.ceil(3 * width)
    means = []
    for here in range(len(values)):
        near = range(max(0, here - reach), min(len(values), here + reach + 1))
        weights = [math.exp(-(((i - here) / width) ** 2) / 2) for i in near]
        total = sum(w * values[i] for w, i in zip(weights, near, strict=True))
        means.append(total / sum(weights))
    return means
