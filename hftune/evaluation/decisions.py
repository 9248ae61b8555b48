# SPDX-License-Identifier: Apache-2.0
"""From logits to one class: thresholds, the search for them, and the correction of a prior.

The predicted class has the highest probability divided by its threshold. With two classes whose
thresholds sum to 1, the second class is predicted from its threshold on. In logarithms, a threshold
is an offset to each logit; optimal decisions for F1 and for class costs have this form.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

Floats = NDArray[np.floating]
Ids = NDArray[np.integer]
SWEEPS = 20
EM_STEPS, EM_TOLERANCE = 10_000, 1e-7
#: An estimated share is never 0, because the class may still occur in other rows.
SMALLEST_SHARE = 1e-6


def decided(scores: Floats, thresholds: Floats) -> Ids:
    """Return the class of each row, shape ``(rows,)``.

    Args:
        scores: Logits, shape ``(rows, classes)``.
        thresholds: Above zero, shape ``(classes,)``; only their ratios count.

    Example:
        >>> decided(np.log([[0.7, 0.3], [0.9, 0.1]]), np.array([0.75, 0.25]))
        array([1, 0])
    """
    ids: Ids = (scores - np.log(thresholds)).argmax(-1)
    return ids


def prior_shift(prior: Floats, seen: Floats) -> Floats:
    """Return the offsets of the logits that correct their softmax for another prior.

    ``p'(c|x)`` is proportional to ``p(c|x) * prior[c] / seen[c]`` if the texts of each class keep
    their distribution.

    Args:
        prior: Class shares where the model is used, shape ``(classes,)``.
        seen: Class shares that its probabilities assume, the same shape.

    Example:
        >>> logits = np.log([0.8, 0.2])
        >>> softmax(logits + prior_shift(np.array([0.2, 0.8]), np.array([0.5, 0.5]))).round(3)
        array([0.5, 0.5])

    References:
        Saerens, Latinne and Decaestecker, "Adjusting the Outputs of a Classifier to New a Priori
            Probabilities", 2002, Neural Computation 14(1), equation 2.4.
    """
    shift: Floats = np.log(prior) - np.log(seen)
    return shift


def estimated_prior(scores: Floats, seen: Floats) -> Floats:
    """Return the class shares of rows without labels, by expectation-maximization.

    Each step corrects the probabilities for the current shares and takes their mean as the next
    shares. The likelihood of the rows rises with each step, provided that the probabilities are
    right for ``seen``.

    Args:
        scores: Logits, shape ``(rows, classes)``.
        seen: Class shares that their softmax assumes, shape ``(classes,)``.

    Example:
        >>> certain = np.log([[0.999, 0.001]] * 3 + [[0.001, 0.999]])  # three rows of class 0
        >>> estimated_prior(certain, np.array([0.5, 0.5])).round(2)
        array([0.75, 0.25])

    References:
        Saerens, Latinne and Decaestecker, 2002, section 2.2, equations 2.9.
    """
    densities = softmax(scores.astype(np.float64), -1) / seen
    shares = np.asarray(seen, dtype=np.float64)
    for _ in range(EM_STEPS):
        before, joint = shares, densities * shares
        shares = (joint / joint.sum(-1, keepdims=True)).mean(0)
        if np.abs(shares - before).max() < EM_TOLERANCE:
            break
    least = np.maximum(shares, SMALLEST_SHARE)
    normalized: Floats = least / least.sum()
    return normalized


def best_macro_f1_thresholds(scores: Floats, labels: Ids) -> Floats:
    """Return the thresholds, with the sum 1, that give the highest macro F1 on these rows.

    Coordinate ascent: one class after the other gets its best threshold while the others stay
    fixed, until no change helps. With two classes the result is optimal; with more classes it is a
    local optimum.

    Args:
        scores: Logits, shape ``(rows, classes)``.
        labels: Class ids, shape ``(rows,)``.

    Example:
        >>> scores = np.log([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])  # the last one is of class 1
        >>> thresholds = best_macro_f1_thresholds(scores, np.array([0, 0, 1]))
        >>> decided(scores, thresholds)
        array([0, 0, 1])
    """
    scores = scores.astype(np.float64)
    offsets = np.zeros(scores.shape[1])
    best = _macro_f1(scores.argmax(-1), labels, len(offsets))
    for _ in range(SWEEPS):
        before = best
        for index in range(len(offsets)):
            offset, reached = _best_offset(scores, offsets, labels, index)
            if reached > best + 1e-12:
                offsets[index], best = offset, reached
        if best == before:
            break
    thresholds = np.exp(offsets.min() - offsets)
    normalized: Floats = thresholds / thresholds.sum()
    return normalized


def _macro_f1(predicted: Ids, labels: Ids, classes: int) -> float:
    right = np.bincount(labels[predicted == labels], minlength=classes)
    given = np.bincount(predicted, minlength=classes)
    return float(_mean_f1(right, given + np.bincount(labels, minlength=classes)))


def _mean_f1(right: Ids, either: Ids) -> Floats:
    """Average ``2 * right / (given + labelled)`` over the classes that occur, on the last axis."""
    f1 = 2 * right / np.maximum(either, 1)
    mean: Floats = f1.sum(-1) / (either > 0).sum(-1)
    return mean


def _best_offset(scores: Floats, offsets: Floats, labels: Ids, index: int) -> tuple[float, float]:
    """Return the best offset of one class for fixed other offsets, and its macro F1.

    A row changes to the class as soon as the offset exceeds the lead of its rival. So the rows are
    sorted by this lead, and running sums give the macro F1 of every possible cut.
    """
    rivals = scores + offsets
    rivals[:, index] = -np.inf
    rival = rivals.argmax(-1)
    lead = rivals.max(-1) - scores[:, index]
    order = np.argsort(lead, kind="stable")
    lead, rival, labels = lead[order], rival[order], labels[order]

    classes = np.arange(scores.shape[1])
    lost = rival[:, None] == classes  # the class of each row before it changes
    right = _running(lost & (labels == rival)[:, None])
    given = _running(lost)
    right, given = right[-1] - right, given[-1] - given
    right[:, index] = _running(labels == index)
    given[:, index] = np.arange(len(labels) + 1)
    f1 = _mean_f1(right, given + np.bincount(labels, minlength=len(classes)))

    edges = np.concatenate([[lead[0] - 2], lead, [lead[-1] + 2]])
    f1 = np.where(np.diff(edges) > 0, f1, -1.0)  # no offset lies between equal leads
    middles = (edges[:-1] + edges[1:]) / 2
    best = np.flatnonzero(f1 == f1.max())
    chosen = best[np.abs(middles[best] - offsets[index]).argmin()]
    return float(middles[chosen]), float(f1[chosen])


def _running(turned: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the running sums along the rows, starting with the sum over no row."""
    sums: NDArray[np.int64] = np.cumsum(turned, axis=0, dtype=np.int64)
    return np.concatenate([np.zeros_like(sums[:1]), sums])
