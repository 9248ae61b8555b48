# SPDX-License-Identifier: Apache-2.0
"""One number a text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from hftune.core.errors import HftuneError
from hftune.core.registry import REGRESSION
from hftune.data.split import Keys
from hftune.evaluation.regression_metrics import regression_metrics
from hftune.losses.loss import in_full
from hftune.tasks.problem_types.problem_type import LabelSet, ProblemType, Thresholds, as_number

FAR = 10.0
STRATA_OF_NUMBERS = 10
ROWS_OF_A_STRATUM = 5


class Regression(ProblemType):
    """One number a text."""

    name = REGRESSION
    probe_logits = "torch.as_tensor(probe.predict(features(**batch)))[:, None]"
    loss = "mse"
    metric_names = ("loss", "mse", "rmse", "mae", "r2", "pearson", "spearman")
    best_metric = "loss"

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return squared errors; see :class:`ProblemType`."""
        return (in_full(logits).squeeze(-1) - labels).square()

    def to_probabilities(self, logits: Tensor) -> None:
        """Return None; see :class:`ProblemType`."""
        return

    def logits_of(self, pipeline: Any, features: NDArray[Any], num_labels: int) -> Tensor:
        """Return the predicted numbers; see :class:`ProblemType`."""
        return torch.from_numpy(np.asarray(pipeline.predict(features), np.float64))[:, None]

    def read(self, rows: Dataset, column: str) -> Any:
        """Return floats; see :class:`ProblemType`."""
        values = rows[column][:]
        numbers = []
        for row, value in enumerate(values, start=1):
            number = as_number(value)
            if number is None and (value is None or value == "" or value != value):
                raise HftuneError(
                    f"column {column!r}: row {row} has no number", hint="leave the row out"
                )
            if number is None:
                raise HftuneError(
                    f"column {column!r}: row {row} is no finite number: {value!r:.60}",
                    hint="write it as 1.5 or 2e3; for classes set model.config.problem_type: "
                    "single_label_classification",
                )
            numbers.append(number)
        return numbers

    def names(self, rows: Dataset) -> list[str]:
        """Return none; see :class:`ProblemType`."""
        labels = rows["label"][:]
        if len(set(labels)) < 2:
            raise HftuneError(f"every target is {labels[0]}; there is nothing to learn")
        return []

    def remarks(self, rows: Dataset) -> list[str]:
        """Say that targets are too far from where a new head starts; see :class:`ProblemType`."""
        labels = np.asarray(rows["label"][:])
        mean, spread = labels.mean(), labels.std()
        if abs(mean) <= FAR and 1 / FAR <= spread <= FAR:
            return []
        return [
            f"the targets have mean {mean:.4g} and standard deviation {spread:.4g}; a new head "
            "starts near 0 and learns such numbers slowly, so scale them to about 0 and 1"
        ]

    def occurring(self, rows: Dataset) -> set[str]:
        """Return none; see :class:`ProblemType`."""
        return set()

    def strata(self, rows: Dataset) -> Keys:
        """Keep tenths of the rows, by their value, alike, fewer parts of few rows."""
        labels = rows["label"][:]
        number = max(1, min(STRATA_OF_NUMBERS, len(labels) // ROWS_OF_A_STRATUM))
        edges = np.quantile(labels, np.linspace(0, 1, number + 1)[1:-1])
        return list(np.searchsorted(edges, labels).tolist())

    def encode(self, labels: Sequence[Any], names: Sequence[str]) -> list[Any]:
        """Return the numbers; see :class:`ProblemType`."""
        return list(labels)

    def counts(self, encoded: Any, num_classes: int) -> NDArray[np.integer[Any]]:
        """Return nothing: numbers are no classes."""
        return np.zeros(0, dtype=np.int64)

    def thresholds(self, given: Thresholds, names: Sequence[str]) -> NDArray[Any]:
        """Return none; see :class:`ProblemType`."""
        if given is not None:
            raise HftuneError("evaluation.thresholds: numbers are not decided by a threshold")
        return np.zeros(0)

    def best_thresholds(self, scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        """Return none; see :class:`ProblemType`."""
        return np.zeros(0)

    def metrics(
        self, scores: NDArray[Any], labels: NDArray[Any], known: LabelSet
    ) -> dict[str, float]:
        """See :func:`regression_metrics`."""
        return regression_metrics(scores[:, 0], labels)

    def per_class(
        self, scores: NDArray[Any], labels: NDArray[Any], known: LabelSet
    ) -> dict[str, dict[str, float]]:
        """Return nothing: numbers are no classes."""
        return {}

    def predicted(self, scores: NDArray[Any], known: LabelSet) -> NDArray[Any]:
        """Return the numbers; see :class:`ProblemType`."""
        return scores[:, 0]

    def answer(self, logits: Tensor, known: LabelSet) -> dict[str, Any]:
        """Return the number; see :class:`ProblemType`."""
        return {"prediction": float(logits[0])}
