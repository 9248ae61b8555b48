# SPDX-License-Identifier: Apache-2.0
"""The scikit-learn pipeline of a probe: scaled, balanced, selected, classified."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import (
    RFE,
    SelectKBest,
    VarianceThreshold,
    f_classif,
    f_regression,
    mutual_info_classif,
    mutual_info_regression,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, ParameterGrid
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from hftune.core.errors import HftuneError, RunError
from hftune.core.task_rows import PROBLEM_TYPES
from hftune.methods.probe.method import Balance, Classifier, ProbeConfig

#: Classifier -> its class for labels, its class for numbers.
ESTIMATORS: dict[str, tuple[Any, Any]] = {
    "logistic_regression": (LogisticRegression, None),
    "ridge": (None, Ridge),
    "mlp": (MLPClassifier, MLPRegressor),
    "gradient_boosting": (HistGradientBoostingClassifier, HistGradientBoostingRegressor),
}
#: What scikit-learn chooses less well for some hundred features.
DEFAULTS: dict[str, dict[str, object]] = {"logistic_regression": {"max_iter": 1000}}
#: What cross-validation chooses if the recipe does not say; boosting takes too long for that.
GRIDS: dict[str, dict[str, list[float]]] = {
    "logistic_regression": {"C": [0.0001, 0.001, 0.01, 0.1, 1.0]},
    "ridge": {"alpha": [1.0, 10.0, 100.0, 1000.0, 10000.0]},
    "mlp": {"alpha": [1e-4, 1e-2, 1.0]},
    "gradient_boosting": {},
}
SCORE_FUNCTIONS = {
    "f_classif": f_classif,
    "f_regression": f_regression,
    "mutual_info_classif": mutual_info_classif,
    "mutual_info_regression": mutual_info_regression,
}
SELECTIONS: dict[str, Any] = {
    "variance_threshold": VarianceThreshold,
    "select_k_best": SelectKBest,
    "rfe": RFE,
}
SEED = "random_state"
WEIGHTS = "class_weight"


class Estimator:
    """A scikit-learn pipeline that is checked before there are features to fit it on.

    Args:
        config: What the recipe says.
        problem_type: ``config.problem_type`` of the task.
        num_classes: How many labels there are.
        seed: Of all that is random.

    Raises:
        HftuneError: An option is unknown to scikit-learn, or does not go with the labels.
    """

    def __init__(
        self, config: ProbeConfig, *, problem_type: str, num_classes: int, seed: int
    ) -> None:
        self.config, self.seed = config, seed
        self.num_classes = num_classes
        self.labels = PROBLEM_TYPES[problem_type]
        numbers = self.labels.numbers
        self.classifier: Classifier = config.classifier or (
            "ridge" if numbers else "logistic_regression"
        )
        self.kind = ESTIMATORS[self.classifier][numbers]
        if self.kind is None:
            fits = ", ".join(name for name, kinds in ESTIMATORS.items() if kinds[numbers])
            raise HftuneError(
                f"method.classifier: {self.classifier} does not go with {problem_type}: {fits} do"
            )
        self.arguments = set(inspect.signature(self.kind).parameters)
        self.balance: Balance = self._balance()
        grid = GRIDS[self.classifier] if config.param_grid is None else config.param_grid
        given = config.classifier_kwargs
        self.grid = {name: values for name, values in grid.items() if name not in given}
        self.scoring = config.scoring or ("neg_mean_squared_error" if numbers else "f1_macro")
        self._check()

    def _balance(self) -> Balance:
        weighs = WEIGHTS in self.arguments
        asked = self.config.balance
        if asked is None:
            said = WEIGHTS in self.config.classifier_kwargs
            return "class_weight" if weighs and not said else "none"
        if self.labels.numbers and asked != "none":
            raise HftuneError("method.balance: numbers have no classes to balance")
        if asked == "class_weight" and not weighs:
            raise HftuneError(
                f"method.balance: {self.kind.__name__} takes no class_weight",
                hint="method.balance: smote, or none",
            )
        if asked == "smote" and self.labels.several:
            raise HftuneError(
                "method.balance: smote draws rows of one label, and these have several",
                hint="method.balance: class_weight, with logistic_regression or gradient_boosting",
            )
        if asked == "class_weight" and WEIGHTS in self.config.classifier_kwargs:
            raise HftuneError(
                "method.balance: class_weight is given in classifier_kwargs, too; leave one out"
            )
        return asked

    def _check(self) -> None:
        """Try every candidate on a few rows, since scikit-learn checks values when it fits."""
        config = self.config
        _check_names("classifier_kwargs", self.kind, config.classifier_kwargs)
        _check_names("param_grid", self.kind, self.grid)
        if twice := config.classifier_kwargs.keys() & (config.param_grid or {}):
            raise HftuneError(
                f"method.param_grid: {', '.join(sorted(twice))}: classifier_kwargs says it already"
            )
        if empty := [name for name, values in self.grid.items() if not values]:
            raise HftuneError(f"method.param_grid: {empty[0]}: no values to choose from")
        try:
            get_scorer(self.scoring)
        except ValueError as error:
            raise HftuneError(
                f"method.scoring: scikit-learn has no {self.scoring!r}",
                hint="such as f1_macro, accuracy, neg_log_loss, r2",
            ) from error
        self._check_selection()
        self.sampler()
        X, y = self._few_rows()
        for candidate in ParameterGrid(self.grid):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    self.bare(**candidate).fit(X, y)
                except (ValueError, TypeError) as error:
                    raise HftuneError(f"method.classifier_kwargs: {error}") from error

    def _few_rows(self) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
        X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        if self.labels.numbers:
            return X, X[:, 0]
        if self.labels.several:
            return X, (X[:, :2] > 0).astype(np.int64)
        return X, np.arange(60) % min(self.num_classes, 3)

    def _check_selection(self) -> None:
        name, given = self.config.feature_selection, self.config.feature_selection_kwargs
        if name is None:
            return
        _check_names("feature_selection_kwargs", SELECTIONS[name], given)
        if self.labels.several and name != "variance_threshold":
            raise HftuneError(
                f"method.feature_selection: {name} looks at one label, and these rows have several",
                hint="method.feature_selection: variance_threshold",
            )
        function = given.get("score_func", "f_classif")
        if function == "chi2":
            raise HftuneError(
                "method.feature_selection_kwargs: chi2 needs counts, and features may be negative",
                hint="score_func: f_classif, or mutual_info_classif",
            )
        if function not in SCORE_FUNCTIONS:
            raise HftuneError(
                f"method.feature_selection_kwargs: unknown score_func {function!r}",
                hint=f"known: {', '.join(SCORE_FUNCTIONS)}",
            )
        if name == "rfe" and "estimator" in given:
            raise HftuneError(
                "method.feature_selection_kwargs: the estimator is logistic regression or ridge"
            )

    def bare(self, **candidate: object) -> Any:
        """Return the classifier alone, not fitted."""
        options = {**DEFAULTS.get(self.classifier, {}), **self.config.classifier_kwargs}
        if SEED in self.arguments:
            options.setdefault(SEED, self.seed)
        if self.balance == "class_weight":
            options[WEIGHTS] = "balanced"
        classifier = self.kind(**{**options, **candidate})
        return OneVsRestClassifier(classifier) if self.labels.several else classifier

    def sampler(self) -> Any:
        """Return SMOTE, or None.

        Raises:
            HftuneError: It does not take the arguments.
        """
        if self.balance != "smote":
            return None
        from imblearn.over_sampling import SMOTE

        given = self.config.balance_kwargs
        _check_names("balance_kwargs", SMOTE, given)
        neighbours = given.get("k_neighbors", 5)
        if not isinstance(neighbours, int) or neighbours < 1:
            raise HftuneError(
                f"method.balance_kwargs: k_neighbors: expected 1 or more, got {neighbours!r}"
            )
        return SMOTE(**{SEED: self.seed, **given})

    def neighbours(self) -> int:
        """Return how many neighbours of its own label a row needs; 0 without SMOTE."""
        sampler = self.sampler()
        return 0 if sampler is None else int(sampler.k_neighbors)

    def pipeline(self) -> Any:
        """Return scaling, balance, selection and classifier, not fitted."""
        steps: list[tuple[str, Any]] = []
        if self.config.scaling != "none":
            scaler = StandardScaler() if self.config.scaling == "standard" else Normalizer()
            steps.append(("scaling", scaler))
        sampler = self.sampler()
        if sampler is not None:
            steps.append(("balance", sampler))
        if (selection := self._selection()) is not None:
            steps.append(("feature_selection", selection))
        steps.append(("classifier", self.bare()))
        if sampler is None:
            return Pipeline(steps)
        from imblearn.pipeline import Pipeline as SamplingPipeline

        return SamplingPipeline(steps)  # one that draws rows when it fits and at no other time

    def _selection(self) -> Any:
        name, given = self.config.feature_selection, dict(self.config.feature_selection_kwargs)
        numbers = self.labels.numbers
        if name == "select_k_best":
            function = given.get("score_func", "f_regression" if numbers else "f_classif")
            given["score_func"] = SCORE_FUNCTIONS[function]
        if name == "rfe":
            balanced = {"class_weight": "balanced", "max_iter": 1000}
            given["estimator"] = Ridge() if numbers else LogisticRegression(**balanced)
            given.setdefault("step", 0.1)
        return None if name is None else SELECTIONS[name](**given)

    def fit(
        self, X: NDArray[np.generic], y: NDArray[np.generic], folds: Sequence[tuple[Any, Any]]
    ) -> tuple[Pipeline, list[dict[str, object]], bool]:
        """Choose by cross-validation, then fit on all rows.

        Args:
            X: Features, shape ``(rows, D)``.
            y: Encoded labels.
            folds: Indices of what each fold is fitted on and judged on; none where nothing is
                chosen.

        Returns:
            The fitted pipeline without SMOTE, each candidate with its score, and whether the last
            fit converged.

        Raises:
            RunError: scikit-learn refuses these rows.
        """
        prefix = "classifier__estimator__" if self.labels.several else "classifier__"
        pipeline, tried = self.pipeline(), []
        try:
            if self.grid:
                search = GridSearchCV(
                    pipeline,
                    {f"{prefix}{name}": values for name, values in self.grid.items()},
                    scoring=self.scoring, cv=folds, refit=False, error_score="raise",
                )  # fmt: skip
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    search.fit(X, y)
                tried = _tried(search, prefix)
                pipeline.set_params(**search.best_params_)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                pipeline.fit(X, y)
        except ValueError as error:
            raise RunError(f"method: scikit-learn cannot fit these rows: {error}") from error
        converged = not any(issubclass(one.category, ConvergenceWarning) for one in caught)
        kept = Pipeline([step for step in pipeline.steps if step[0] != "balance"])
        return kept, tried, converged


def _tried(search: GridSearchCV, prefix: str) -> list[dict[str, object]]:
    """Each candidate with its score: the mean over the folds and its standard deviation."""
    results = search.cv_results_
    return [
        {
            **{name.removeprefix(prefix): value for name, value in candidate.items()},
            "cv_score": float(results["mean_test_score"][index]),
            "cv_std": float(results["std_test_score"][index]),
            "best": index == int(search.best_index_),
        }
        for index, candidate in enumerate(results["params"])
    ]


def _check_names(key: str, kind: Callable[..., object], given: Mapping[str, object]) -> None:
    known = sorted(inspect.signature(kind).parameters)
    if unknown := [name for name in given if name not in known]:
        raise HftuneError(
            f"method.{key}: {kind.__name__} has no {', '.join(map(str, unknown))}",
            hint=f"arguments: {', '.join(known)}",
        )
