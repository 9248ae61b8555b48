# SPDX-License-Identifier: Apache-2.0
"""What is fitted on features: scikit-learn's own results, and SMOTE in training parts alone."""

from typing import Any

import numpy as np
import pytest
from imblearn.over_sampling import SMOTE
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler
from transformers import BertConfig, LlamaConfig, T5Config

from hftune import HftuneError
from hftune.methods.probe.estimator import Estimator
from hftune.methods.probe.method import ProbeConfig, default_pooling

SINGLE, MULTI, NUMBERS = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)


def made(problem_type: str = SINGLE, **options: Any) -> Estimator:
    return Estimator(ProbeConfig(**options), problem_type=problem_type, num_classes=3, seed=0)


def rows(number: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Three labels of 60, 18 and 12 rows of 90, overlapping; a column of zeros."""
    generator = np.random.default_rng(1)
    y = np.repeat([0, 1, 2], [number - 30, 18, 12])
    X = generator.normal(size=(number, 5)).astype(np.float32)
    X[:, 0] += y
    X[:, 1] -= y == 2
    X[:, 4] = 0
    return X, y


def folds(number: int = 90) -> list[tuple[np.ndarray, np.ndarray]]:
    order = np.random.default_rng(2).permutation(number)
    return [(np.sort(np.setdiff1d(order, part)), np.sort(part)) for part in np.split(order, 3)]


def test_the_fit_is_scikit_learns() -> None:
    X, y = rows()
    pipeline, tried, converged = made(param_grid={"C": [0.01, 1.0]}).fit(X, y, folds())
    scaler = StandardScaler().fit(X)
    scores = {}
    for C in (0.01, 1.0):
        parts = []
        for fitted, judged in folds():
            inner = StandardScaler().fit(X[fitted])
            model = LogisticRegression(C=C, class_weight="balanced", max_iter=1000)
            model.fit(inner.transform(X[fitted]), y[fitted])
            parts.append(
                f1_score(y[judged], model.predict(inner.transform(X[judged])), average="macro")
            )
        scores[C] = np.mean(parts)
    assert {one["C"]: one["cv_score"] for one in tried} == pytest.approx(scores)
    best = max(scores, key=lambda C: scores[C])
    assert [one["C"] for one in tried if one["best"]] == [best]
    by_hand = LogisticRegression(C=best, class_weight="balanced", max_iter=1000)
    by_hand.fit(scaler.transform(X), y)
    expected = by_hand.predict_proba(scaler.transform(X))
    np.testing.assert_allclose(pipeline.predict_proba(X), expected, atol=1e-6)
    assert converged


def test_several_labels_are_one_against_the_rest_and_numbers_a_ridge() -> None:
    X, y = rows()
    several = np.stack([y > 0, X[:, 2] > 0], 1).astype(int)
    pipeline, _, _ = made(MULTI, param_grid={}, scaling="none").fit(X, several, [])
    by_hand = OneVsRestClassifier(LogisticRegression(class_weight="balanced", max_iter=1000))
    expected = by_hand.fit(X, several).predict_proba(X)
    np.testing.assert_allclose(pipeline.predict_proba(X), expected, atol=1e-6)
    pipeline, _, _ = made(NUMBERS, param_grid={}, scaling="none").fit(X, X[:, 0] * 2, [])
    expected = Ridge(random_state=0).fit(X, X[:, 0] * 2).predict(X)
    np.testing.assert_allclose(pipeline.predict(X), expected, atol=1e-5)


@pytest.mark.parametrize("classifier", ["mlp", "gradient_boosting"])
@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, NUMBERS])
def test_the_other_classifiers_learn(classifier: str, problem_type: str) -> None:
    X, y = rows()
    target = {SINGLE: y, MULTI: np.stack([y > 0, y > 1], 1).astype(int), NUMBERS: X[:, 0] * 2.0}
    kwargs = {"max_iter": 300} if classifier == "mlp" else {"max_iter": 20}
    estimator = made(problem_type, classifier=classifier, param_grid={}, classifier_kwargs=kwargs)
    pipeline, tried, _ = estimator.fit(X, target[problem_type], [])
    assert tried == []
    assert pipeline.score(X, target[problem_type]) > 0.6


def test_smote_draws_from_the_training_part_of_each_fold_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[np.ndarray] = []
    original = SMOTE.fit_resample

    def watched(self: Any, X: np.ndarray, y: np.ndarray, **kwargs: Any) -> Any:
        seen.append(X.copy())
        return original(self, X, y, **kwargs)

    monkeypatch.setattr(SMOTE, "fit_resample", watched)
    X, y = rows()
    estimator = made(balance="smote", param_grid={"C": [0.1, 1.0]}, scaling="none")
    pipeline, tried, _ = estimator.fit(X, y, folds())
    parts = [fitted for fitted, _ in folds()] * 2 + [np.arange(90)]
    assert sorted(map(len, seen)) == sorted(map(len, parts))
    given = {part.tobytes() for part in seen}
    assert given == {X[part].tobytes() for part in parts}

    monkeypatch.undo()
    scores = []
    for fitted, judged in folds():  # the judged rows are never drawn from
        drawn, labels = SMOTE(random_state=0).fit_resample(X[fitted], y[fitted])
        model = LogisticRegression(C=1.0, max_iter=1000).fit(drawn, labels)
        scores.append(f1_score(y[judged], model.predict(X[judged]), average="macro"))
    assert tried[1]["cv_score"] == pytest.approx(np.mean(scores))
    assert "balance" not in pipeline.named_steps


def test_smote_rows_lie_between_two_rows_of_their_label() -> None:
    X, y = rows()
    sampler = made(balance="smote", balance_kwargs={"k_neighbors": 3}).sampler()
    drawn, labels = sampler.fit_resample(X, y)
    assert np.bincount(labels).tolist() == [60, 60, 60]
    for row, label in list(zip(drawn, labels, strict=True))[90:]:
        own = X[y == label].astype(np.float64)
        ends = own[:, None] - own[None, :]
        sums = np.linalg.norm(own - row, axis=1)
        gaps = sums[:, None] + sums[None, :] - np.linalg.norm(ends, axis=-1)
        np.fill_diagonal(gaps, np.inf)
        assert gaps.min() < 1e-5


def test_selection_keeps_what_scikit_learn_scores_highest() -> None:
    X, y = rows()
    options = {"param_grid": {}, "scaling": "none"}
    best = made(
        feature_selection="select_k_best", feature_selection_kwargs={"k": 2}, **options
    ).fit(X[:, :4], y, [])[0]
    order = np.argsort(-f_classif(X[:, :4], y)[0])
    assert set(best[0].get_support(indices=True)) == set(order[:2])
    variance = made(feature_selection="variance_threshold", **options).fit(X, y, [])[0]
    assert variance[0].get_support().tolist() == [True] * 4 + [False]
    rfe = made(
        feature_selection="rfe", feature_selection_kwargs={"n_features_to_select": 3}, **options
    ).fit(X, y, [])[0]
    assert rfe[0].support_.sum() == 3


@pytest.mark.parametrize(
    ("problem_type", "options", "says"),
    [
        (NUMBERS, {"classifier": "logistic_regression"}, "does not go with regression"),
        (SINGLE, {"classifier": "ridge"}, "does not go with single_label"),
        (SINGLE, {"classifier_kwargs": {"c": 1}}, "LogisticRegression has no c"),
        (SINGLE, {"classifier_kwargs": {"C": -1}}, "The 'C' parameter"),
        (SINGLE, {"classifier_kwargs": {"solver": "liblinear"}}, "liblinear"),
        (SINGLE, {"classifier_kwargs": {"C": 1}, "param_grid": {"C": [1]}}, "says it already"),
        (SINGLE, {"param_grid": {"alpha": [1]}}, "has no alpha"),
        (SINGLE, {"param_grid": {"C": []}}, "no values"),
        (SINGLE, {"param_grid": {"C": [1, "much"]}}, "The 'C' parameter"),
        (SINGLE, {"scoring": "f2_macro"}, "has no 'f2_macro'"),
        (SINGLE, {"classifier": "mlp", "balance": "class_weight"}, "takes no class_weight"),
        (SINGLE, {"balance": "smote", "balance_kwargs": {"k": 2}}, "SMOTE has no k"),
        (SINGLE, {"balance": "smote", "balance_kwargs": {"k_neighbors": 0}}, "1 or more"),
        (MULTI, {"balance": "smote"}, "these have several"),
        (NUMBERS, {"balance": "smote"}, "no classes"),
        (
            SINGLE,
            {"balance": "class_weight", "classifier_kwargs": {"class_weight": None}},
            "leave one out",
        ),
        (MULTI, {"feature_selection": "rfe"}, "looks at one label"),
        (
            SINGLE,
            {
                "feature_selection": "select_k_best",
                "feature_selection_kwargs": {"score_func": "chi2"},
            },
            "may be negative",
        ),
        (
            SINGLE,
            {"feature_selection": "rfe", "feature_selection_kwargs": {"estimator": "x"}},
            "the estimator is",
        ),
        (
            SINGLE,
            {
                "feature_selection": "select_k_best",
                "feature_selection_kwargs": {"score_func": "best"},
            },
            "unknown score_func",
        ),
    ],
)
def test_what_scikit_learn_would_not_fit_is_refused_before_there_are_features(
    problem_type: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(HftuneError, match=says):
        made(problem_type, **options)


def test_the_pooling_that_suits_a_model() -> None:
    assert default_pooling(BertConfig(), "cls") == "cls"
    assert default_pooling(BertConfig(), None) == "mean"
    assert default_pooling(LlamaConfig(), None) == "last"
    assert default_pooling(T5Config(), None) == "mean"
