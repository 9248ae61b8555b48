# SPDX-License-Identifier: Apache-2.0
"""Thresholds by brute force with scikit-learn's F1; priors by Bayes's rule on Gaussians."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import norm
from sklearn.metrics import f1_score

from hftune.evaluation.decisions import (
    best_macro_f1_thresholds,
    decided,
    estimated_prior,
    prior_shift,
)


def rows(seed: int, classes: int, number: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Scores that know something, of classes of which each has half the rows of the one before."""
    generator = np.random.default_rng(seed)
    shares = 0.5 ** np.arange(classes)
    labels = generator.choice(classes, number, p=shares / shares.sum())
    scores = generator.normal(size=(number, classes)) + np.log(shares)
    scores[np.arange(number), labels] += 1
    return scores, labels


def macro_f1(scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> float:
    return f1_score(labels, decided(scores, thresholds), average="macro", zero_division=0)


def test_two_classes_turn_at_the_threshold() -> None:
    shares = np.linspace(0.01, 0.99, 50)
    scores = np.log(np.stack([1 - shares, shares], 1))
    for threshold in (0.105, 0.5, 0.83):
        given = decided(scores, np.array([1 - threshold, threshold]))
        assert given.tolist() == (shares >= threshold).astype(int).tolist()


def test_equal_thresholds_are_the_highest_score() -> None:
    scores, _ = rows(0, 5)
    assert (decided(scores, np.full(5, 0.2)) == scores.argmax(1)).all()


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_reach_the_best_there_is(seed: int) -> None:
    scores, labels = rows(seed, 2)
    found = best_macro_f1_thresholds(scores, labels)
    assert found.sum() == pytest.approx(1)
    cuts = np.sort(softmax(scores, 1)[:, 1])
    tried = [0.001, *((cuts[:-1] + cuts[1:]) / 2), 0.999]
    best = max(macro_f1(scores, labels, np.array([1 - t, t])) for t in tried)
    assert macro_f1(scores, labels, found) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(3))
def test_more_classes_gain_and_no_single_change_gains_more(seed: int) -> None:
    scores, labels = rows(seed, 4)
    found = best_macro_f1_thresholds(scores, labels)
    reached = macro_f1(scores, labels, found)
    assert reached > macro_f1(scores, labels, np.full(4, 0.25))
    for index, factor in itertools.product(range(4), np.geomspace(0.02, 50, 40)):
        other = found.copy()
        other[index] *= factor
        assert macro_f1(scores, labels, other) <= reached + 1e-12


def test_three_classes_come_near_the_best_of_a_grid() -> None:
    scores, labels = rows(1, 3)
    reached = macro_f1(scores, labels, best_macro_f1_thresholds(scores, labels))
    grid = np.geomspace(0.05, 20, 25)
    best = max(macro_f1(scores, labels, np.array([1, a, b])) for a in grid for b in grid)
    assert reached > best - 0.02


def test_nothing_to_gain_changes_nothing() -> None:
    labels = np.array([0, 1, 2, 0])
    found = best_macro_f1_thresholds(np.eye(3)[labels], labels)
    assert found == pytest.approx(np.full(3, 1 / 3))


def test_equal_scores_are_not_torn_apart() -> None:
    """Six rows that look the same, half of them of the second class, and six that are the first's.

    The best is to give the six alike to the second: 3 of them are right, and the other six.
    """
    scores = np.array([[0.0, 0.0]] * 6 + [[2.0, 0.0]] * 6)
    labels = np.array([1] * 3 + [0] * 9)
    found = best_macro_f1_thresholds(scores, labels)
    expected = (2 * 6 / (6 + 9) + 2 * 3 / (6 + 3)) / 2
    assert macro_f1(scores, labels, found) == pytest.approx(expected)


def test_a_class_without_rows_stays_out() -> None:
    scores, labels = rows(2, 4)
    labels[labels == 3] = 0
    found = best_macro_f1_thresholds(scores, labels)
    assert np.isfinite(found).all()
    assert macro_f1(scores, labels, found) >= macro_f1(scores, labels, np.full(4, 0.25))


def test_prior_shift_gives_bayes_posterior_of_gaussians() -> None:
    """Two Gaussians: the posterior under one prior, shifted, is that under the other."""
    x = np.linspace(-3, 4, 30)
    likelihood = np.stack([norm.pdf(x, 0, 1), norm.pdf(x, 1, 1.5), norm.pdf(x, 2, 0.7)], 1)

    def posterior(prior: np.ndarray) -> np.ndarray:
        joint = likelihood * prior
        return joint / joint.sum(1, keepdims=True)

    seen, prior = np.array([0.8, 0.15, 0.05]), np.array([0.2, 0.3, 0.5])
    logits = log_softmax(np.log(posterior(seen)) + 7.0, 1)
    shifted = softmax(logits + prior_shift(prior, seen), 1)
    np.testing.assert_allclose(shifted, posterior(prior), atol=1e-12)


def gaussians(prior: np.ndarray, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws from three Gaussians: their densities, and the class of each."""
    generator = np.random.default_rng(seed)
    means, widths = np.array([0.0, 1.5, 3.0]), np.array([1.0, 1.2, 0.7])
    labels = generator.choice(3, number, p=prior)
    x = generator.normal(means[labels], widths[labels])
    return np.stack([norm.pdf(x, m, w) for m, w in zip(means, widths, strict=True)], 1), labels


def test_estimated_prior_is_the_most_likely_one() -> None:
    """Against a general optimizer of the likelihood, and near the shares that were drawn."""
    seen, true = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    densities, labels = gaussians(true, 4000, 0)
    scores = np.log(densities * seen) - 3.0
    found = estimated_prior(scores, seen)

    def unlikelihood(shares: np.ndarray) -> float:
        return float(-np.log(densities @ shares).mean())

    best = minimize(
        unlikelihood,
        seen,
        bounds=[(1e-9, 1)] * 3,
        constraints={"type": "eq", "fun": lambda shares: shares.sum() - 1},
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(found, best.x, atol=1e-4)
    np.testing.assert_allclose(found, true, atol=0.03)
    before = (scores.argmax(-1) == labels).mean()
    after = ((scores + prior_shift(found, seen)).argmax(-1) == labels).mean()
    assert after > before + 0.1, "and the decisions gain"


def test_estimated_prior_stays_where_nothing_has_changed() -> None:
    seen = np.array([0.5, 0.3, 0.2])
    densities, _ = gaussians(seen, 20_000, 1)
    np.testing.assert_allclose(estimated_prior(np.log(densities * seen), seen), seen, atol=0.02)


def test_a_class_without_rows_keeps_a_little() -> None:
    seen = np.array([0.5, 0.3, 0.2])
    densities, _ = gaussians(np.array([0.5, 0.5, 0.0]), 500, 2)
    found = estimated_prior(np.log(densities * seen + 1e-300), seen)
    assert found[2] < 0.05
    assert found.min() >= 1e-6 * (1 - 1e-3)
    assert found.sum() == pytest.approx(1)
