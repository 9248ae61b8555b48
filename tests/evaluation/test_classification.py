# SPDX-License-Identifier: Apache-2.0
"""Every figure is scikit-learn's, on the arg-max of the scores."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sk

from hftune.evaluation.classification import classification_metrics, per_class_metrics

Scored = tuple[NDArray[np.floating], NDArray[np.integer]]


@pytest.fixture(params=[2, 4])
def scored(request: pytest.FixtureRequest) -> Scored:
    """Scores that know something of the labels; the last class is never a label."""
    generator = np.random.default_rng(request.param)
    labels = generator.integers(0, max(2, request.param - 1), 50)
    scores = generator.normal(size=(50, request.param)).astype(np.float32)
    scores[np.arange(50), labels] += 1
    return scores, labels


def test_whole(scored: Scored) -> None:
    scores, labels = scored
    predicted = scores.argmax(1)
    shares = np.exp(scores.astype(np.float64))
    shares /= shares.sum(1, keepdims=True)
    expected = {
        "loss": sk.log_loss(labels, shares, labels=np.arange(scores.shape[1])),
        "accuracy": sk.accuracy_score(labels, predicted),
        "mcc": sk.matthews_corrcoef(labels, predicted),
    }
    for name in ("precision", "recall", "f1"):
        for average in ("macro", "weighted"):
            score = getattr(sk, f"{name}_score")
            value = score(labels, predicted, average=average, zero_division=0)
            expected[f"{name}_{average}"] = value
    if scores.shape[1] == 2:
        expected["roc_auc"] = sk.roc_auc_score(labels, shares[:, 1])
        expected["average_precision"] = sk.average_precision_score(labels, shares[:, 1])
    else:  # the last class has no rows
        against = [(labels == c, shares[:, c]) for c in range(3)]
        expected["roc_auc"] = np.mean([sk.roc_auc_score(*pair) for pair in against])
        precisions = [sk.average_precision_score(*pair) for pair in against]
        expected["average_precision"] = np.mean(precisions)
    assert classification_metrics(scores, labels) == pytest.approx(expected)


def test_by_hand() -> None:
    # Probabilities of 3/4 and 1/4; two of three right.
    scores = np.log([[3.0, 1.0], [1.0, 3.0], [3.0, 1.0]])
    found = classification_metrics(scores, np.array([0, 1, 1]))
    assert found["loss"] == pytest.approx(-(2 * np.log(0.75) + np.log(0.25)) / 3)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["f1_macro"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert found["mcc"] == pytest.approx((1 * 1 - 1 * 0) / np.sqrt(2 * 1 * 2 * 1))


def test_huge_scores_have_a_finite_loss() -> None:
    scores = np.array([[6e4, -6e4], [-6e4, 6e4]], dtype=np.float16)
    expected = (6e4 - -6e4) / 2
    found = classification_metrics(scores, np.array([0, 0]))["loss"]
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("right", [True, False])
def test_one_class_among_the_labels(right: bool) -> None:
    scores = np.array([[2.0, 0.0]] * 3 if right else [[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    found = classification_metrics(scores, np.zeros(3, dtype=int))
    assert found["accuracy"] == pytest.approx(1 if right else 2 / 3)
    assert found["mcc"] == 0


def test_per_class(scored: Scored) -> None:
    scores, labels = scored
    names = [f"class {i}" for i in range(scores.shape[1])]
    report = sk.classification_report(
        labels, scores.argmax(1), labels=range(len(names)), target_names=names,
        output_dict=True, zero_division=0,
    )  # fmt: skip
    found = per_class_metrics(scores.argmax(1), labels, names)
    assert list(found) == names
    for name in names:
        assert found[name] == pytest.approx(
            {key.removesuffix("-score"): value for key, value in report[name].items()}
        )
