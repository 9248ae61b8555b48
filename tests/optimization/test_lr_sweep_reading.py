# SPDX-License-Identifier: Apache-2.0
"""A range test of gradient descent on a quadratic, whose bound is known: 2 / h."""

import math
import random

import pytest

from hftune.optimization.lr_sweep_reading import Divergence, RangeTest, rate_at, read_sweep, smooth


def descend(curvature: float, start: float, end: float, steps: int, noise: float) -> RangeTest:
    """Sweep ``h x^2 / 2``, to which each batch adds noise."""
    chance, diverges = random.Random(0), Divergence()
    weight, rates, losses = 1.0, [], []
    stopped = False
    for step in range(steps):
        rate = rate_at(step, start, end, steps)
        weight -= rate * curvature * weight
        loss = 0.5 + curvature * weight**2 / 2 + noise * chance.random()
        stopped = diverges(loss)
        if stopped:
            break
        rates.append(rate)
        losses.append(loss)
    return read_sweep(rates, losses, planned=steps, stopped=stopped)


@pytest.mark.parametrize("curvature", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_the_suggestion_is_below_the_bound_of_a_quadratic(curvature: float, noise: float) -> None:
    found = descend(curvature, 1e-4, 1e3, 100, noise * curvature)
    assert found.suggestion is not None
    assert found.suggestion < 2 / curvature
    assert found.suggestion > 1e-3 / curvature
    assert found.suggestion <= found.lowest
    assert found.diverged is not None
    assert 2 / curvature < found.diverged < 200 / curvature


def test_a_loss_that_only_rises_suggests_nothing() -> None:
    rates = [rate_at(step, 1e-4, 1.0, 20) for step in range(20)]
    found = read_sweep(rates, [1.0 + 0.1 * i for i in range(20)], planned=20, stopped=False)
    assert found.suggestion is None


def test_the_steepest_fall_of_a_curve_that_is_known() -> None:
    """A logistic fall in the logarithm of the rate is steepest in its middle."""
    steps, middle = 200, 1e-3
    rates = [rate_at(step, 1e-6, 1.0, steps) for step in range(steps)]
    losses = [2 - 1 / (1 + math.exp(-3 * math.log(rate / middle))) for rate in rates]
    found = read_sweep(rates, losses, planned=steps, stopped=False)
    assert found.suggestion == pytest.approx(middle, rel=0.1)


def test_smoothing_keeps_lines_and_means() -> None:
    assert smooth([3.0] * 10, 2.0) == pytest.approx([3.0] * 10)
    line = [float(i) for i in range(40)]
    assert smooth(line, 2.0)[10:30] == pytest.approx(line[10:30])  # no lag


def test_divergence() -> None:
    for losses, lost in (
        ([1.0, 1.0, math.nan], True),
        ([1.0, 1.0, math.inf], True),
        ([1.0, 2.0, 3.0, 3.0], False),
        ([1.0, 0.1, 0.1, 5.0], False),  # one outlier of a batch
        ([1.0, 1.0, *[9.0] * 6], True),
    ):
        diverges = Divergence()
        assert any(list(map(diverges, losses))) == lost, losses
