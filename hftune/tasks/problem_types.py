# SPDX-License-Identifier: Apache-2.0
"""The three kinds of labels of ``text-classification``: one of many, any of many, a number.

Their names are those of ``config.problem_type``.
"""

import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, List
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve
from torch import Tensor

from hftune.core.errors import HftuneError
from hftune.metrics.classification import classification_metrics, per_class_metrics
from hftune.metrics.multi_label import multi_label_metrics, per_label_metrics
from hftune.metrics.regression import regression_metrics

SHOWN_ROWS = 5
STRATA_OF_NUMBERS = 10
HALF = 0.5
Thresholds = float | dict[str, float] | str | None


class ProblemType(ABC):
    """How labels are read, encoded, predicted and measured.

    Attributes:
        loss: The loss if the recipe does not say.
        metric_names: What :meth:`metrics` returns.
        best_metric: What the best model is chosen by if the recipe does not say.
    """

    loss: str
    metric_names: tuple[str, ...]
    best_metric: str

    @abstractmethod
    def read(self, values: list[Any], column: str, feature: Any) -> list[Any]:
        """Return the cells as labels; the message names bad rows."""

    @abstractmethod
    def names(self, labels: Sequence[Any]) -> list[str]:
        """Return the label names that occur, in their order.

        Raises:
            HftuneError: They are too few to learn from.
        """

    @abstractmethod
    def occurring(self, labels: Sequence[Any]) -> set[str]:
        """Return the set of label names that occur."""

    @abstractmethod
    def strata(self, labels: Sequence[Any]) -> list[Hashable]:
        """Return what both parts of a split shall hold alike."""

    @abstractmethod
    def encode(self, labels: Sequence[Any], names: Sequence[str]) -> list[Any]:
        """Return what the loss takes."""

    @abstractmethod
    def counts(self, encoded: Any, num_classes: int) -> NDArray[np.integer[Any]]:
        """Return how often each label occurs."""

    @abstractmethod
    def metrics(
        self, scores: NDArray[Any], labels: NDArray[Any], thresholds: NDArray[Any]
    ) -> dict[str, float]:
        """Return the metrics from logits ``(rows, classes)`` and encoded labels."""

    @abstractmethod
    def per_class(
        self,
        scores: NDArray[Any],
        labels: NDArray[Any],
        names: Sequence[str],
        thresholds: NDArray[Any],
    ) -> dict[str, dict[str, float]]:
        """Return label name -> metrics."""

    @abstractmethod
    def predicted(self, scores: NDArray[Any], thresholds: NDArray[Any]) -> NDArray[Any]:
        """Return encoded predictions of all rows."""

    @abstractmethod
    def answer(
        self, logits: Tensor, names: Sequence[str], thresholds: NDArray[Any]
    ) -> dict[str, Any]:
        """Return what ``hftune predict`` writes of a row, from its logits ``(classes,)``."""


class SingleLabel(ProblemType):
    """One label a text."""

    loss = "cross_entropy"
    metric_names = (
        "loss", "accuracy", "mcc", "precision_macro", "recall_macro", "f1_macro",
        "precision_weighted", "recall_weighted", "f1_weighted", "roc_auc", "average_precision",
    )  # fmt: skip
    best_metric = "f1_macro"

    def read(self, values: list[Any], column: str, feature: Any) -> list[Any]:
        """Return labels as text; see :class:`ProblemType`."""
        if isinstance(feature, ClassLabel):
            values = [None if i is None or i < 0 else feature.names[i] for i in values]
        _refuse_missing(values, column)
        kinds = {type(value) for value in values}
        if kinds <= {float} and all(value.is_integer() for value in values):
            values = [int(value) for value in values]  # integers beside a gap become floats
        elif not kinds <= {str, int, bool}:
            found = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise HftuneError(f"column {column!r}: a label is text or a whole number, not {found}")
        return [str(value) for value in values]

    def names(self, labels: Sequence[Any]) -> list[str]:
        """Return numbers in their order, then names in theirs; see :class:`ProblemType`."""
        present = self.occurring(labels)
        if len(present) < 2:
            raise HftuneError(
                f"one class only: every label is {next(iter(present))!r}; a classifier needs two"
            )
        return sorted(present, key=_label_order)

    def occurring(self, labels: Sequence[Any]) -> set[str]:
        """Return the labels; see :class:`ProblemType`."""
        return set(labels)

    def strata(self, labels: Sequence[Any]) -> list[Hashable]:
        """Keep the classes alike; see :class:`ProblemType`."""
        return list(labels)

    def encode(self, labels: Sequence[Any], names: Sequence[str]) -> list[Any]:
        """Return ids; see :class:`ProblemType`."""
        ids = {name: index for index, name in enumerate(names)}
        return [ids[label] for label in labels]

    def counts(self, encoded: Any, num_classes: int) -> NDArray[np.integer[Any]]:
        """Count ids; see :class:`ProblemType`."""
        return np.bincount(np.asarray(encoded), minlength=num_classes)

    def metrics(
        self, scores: NDArray[Any], labels: NDArray[Any], thresholds: NDArray[Any]
    ) -> dict[str, float]:
        """See :func:`classification_metrics`."""
        return classification_metrics(scores, labels)

    def per_class(
        self,
        scores: NDArray[Any],
        labels: NDArray[Any],
        names: Sequence[str],
        thresholds: NDArray[Any],
    ) -> dict[str, dict[str, float]]:
        """See :func:`per_class_metrics`."""
        return per_class_metrics(scores, labels, names)

    def predicted(self, scores: NDArray[Any], thresholds: NDArray[Any]) -> NDArray[Any]:
        """Return the id of the highest logit; see :class:`ProblemType`."""
        ids: NDArray[Any] = scores.argmax(-1)
        return ids

    def answer(
        self, logits: Tensor, names: Sequence[str], thresholds: NDArray[Any]
    ) -> dict[str, Any]:
        """Return the best label, its probability and all of them; see :class:`ProblemType`."""
        shares = logits.softmax(-1).tolist()
        best = int(np.argmax(shares))
        return {
            "prediction": names[best],
            "score": shares[best],
            "scores": dict(zip(names, shares, strict=True)),
        }


class MultiLabel(ProblemType):
    """Any number of labels a text, none included.

    Args:
        separator: What stands between the labels of a cell that is text.
    """

    loss = "bce_with_logits"
    metric_names = (
        "loss", "accuracy", "hamming_loss", "f1_micro", "f1_macro", "f1_weighted", "f1_samples",
        "precision_micro", "recall_micro", "roc_auc", "average_precision",
    )  # fmt: skip
    best_metric = "f1_macro"

    def __init__(self, separator: str | None = None) -> None:
        self.separator = separator

    def read(self, values: list[Any], column: str, feature: Any) -> list[Any]:
        """Return a list of names a row; see :class:`ProblemType`."""
        inner = getattr(feature, "feature", None) if isinstance(feature, List) else None
        rows = []
        for number, cell in enumerate(values, start=1):
            labels = self._cell(cell, f"column {column!r}: row {number}")
            if isinstance(inner, ClassLabel):
                labels = [inner.names[label] for label in labels]
            texts = [str(label) for label in labels]
            if len(set(texts)) < len(texts):
                raise HftuneError(f"column {column!r}: row {number} has a label twice: {cell!r}")
            rows.append(texts)
        return rows

    def _cell(self, cell: Any, where: str) -> list[Any]:
        if isinstance(cell, str) and self.separator is not None:
            return [part.strip() for part in cell.split(self.separator) if part.strip()]
        if isinstance(cell, str) and cell.lstrip().startswith("["):
            try:
                cell = json.loads(cell)
            except ValueError:
                raise HftuneError(
                    f"{where} is no list in JSON: {cell!r:.60}",
                    hint='write ["a", "b"], or name what separates them: data.label_separator',
                ) from None
        if not isinstance(cell, list) or not all(type(item) in (str, int) for item in cell):
            raise HftuneError(
                f"{where} is no list of labels: {cell!r:.60}",
                hint="name what separates them: data: {label_separator: ...}",
            )
        return cell

    def names(self, labels: Sequence[Any]) -> list[str]:
        """Return numbers in their order, then names in theirs; see :class:`ProblemType`."""
        present = self.occurring(labels)
        if not present:
            raise HftuneError("no row has a label")
        return sorted(present, key=_label_order)

    def occurring(self, labels: Sequence[Any]) -> set[str]:
        """Return the labels of all rows; see :class:`ProblemType`."""
        return {name for row in labels for name in row}

    def strata(self, labels: Sequence[Any]) -> list[Hashable]:
        """Keep each row's rarest label alike; see :class:`ProblemType`."""
        counts = Counter(name for row in labels for name in row)
        return [min(row, key=lambda name: (counts[name], name), default="") for row in labels]

    def encode(self, labels: Sequence[Any], names: Sequence[str]) -> list[Any]:
        """Return 0.0 or 1.0 for each name; see :class:`ProblemType`."""
        return [[float(name in row) for name in names] for row in map(set, labels)]

    def counts(self, encoded: Any, num_classes: int) -> NDArray[np.integer[Any]]:
        """Count the positives; see :class:`ProblemType`."""
        counts: NDArray[np.int64] = np.nansum(np.asarray(encoded), axis=0).astype(np.int64)
        return counts

    def metrics(
        self, scores: NDArray[Any], labels: NDArray[Any], thresholds: NDArray[Any]
    ) -> dict[str, float]:
        """See :func:`multi_label_metrics`."""
        return multi_label_metrics(scores, labels, thresholds)

    def per_class(
        self,
        scores: NDArray[Any],
        labels: NDArray[Any],
        names: Sequence[str],
        thresholds: NDArray[Any],
    ) -> dict[str, dict[str, float]]:
        """See :func:`per_label_metrics`."""
        return per_label_metrics(scores, labels, names, thresholds)

    def predicted(self, scores: NDArray[Any], thresholds: NDArray[Any]) -> NDArray[Any]:
        """Return 0 or 1 for each label; see :class:`ProblemType`."""
        shares = torch.from_numpy(scores).sigmoid().numpy()
        return (shares >= thresholds).astype(np.int64)

    def answer(
        self, logits: Tensor, names: Sequence[str], thresholds: NDArray[Any]
    ) -> dict[str, Any]:
        """Return the labels at or above their thresholds, and all probabilities."""
        shares = logits.sigmoid().tolist()
        above = zip(names, shares, thresholds, strict=True)
        return {
            "prediction": [name for name, share, threshold in above if share >= threshold],
            "scores": dict(zip(names, shares, strict=True)),
        }


class Regression(ProblemType):
    """One number a text."""

    loss = "mse"
    metric_names = ("loss", "mse", "rmse", "mae", "r2", "pearson", "spearman")
    best_metric = "loss"

    def read(self, values: list[Any], column: str, feature: Any) -> list[Any]:
        """Return floats; see :class:`ProblemType`."""
        _refuse_missing(values, column)
        numbers = []
        for row, value in enumerate(values, start=1):
            number = as_number(value)
            if number is None:
                raise HftuneError(
                    f"column {column!r}: row {row} is no number: {value!r:.60}",
                    hint="for classes set model.config.problem_type: single_label_classification",
                )
            numbers.append(number)
        return numbers

    def names(self, labels: Sequence[Any]) -> list[str]:
        """Return none; see :class:`ProblemType`."""
        if len(set(labels)) < 2:
            raise HftuneError(f"every target is {labels[0]}; there is nothing to learn")
        return []

    def occurring(self, labels: Sequence[Any]) -> set[str]:
        """Return none; see :class:`ProblemType`."""
        return set()

    def strata(self, labels: Sequence[Any]) -> list[Hashable]:
        """Keep tenths of the range of values alike; see :class:`ProblemType`."""
        edges = np.quantile(labels, np.linspace(0, 1, STRATA_OF_NUMBERS + 1)[1:-1])
        return list(np.searchsorted(edges, labels).tolist())

    def encode(self, labels: Sequence[Any], names: Sequence[str]) -> list[Any]:
        """Return the numbers; see :class:`ProblemType`."""
        return list(labels)

    def counts(self, encoded: Any, num_classes: int) -> NDArray[np.integer[Any]]:
        """Return nothing: numbers are no classes."""
        return np.zeros(0, dtype=np.int64)

    def metrics(
        self, scores: NDArray[Any], labels: NDArray[Any], thresholds: NDArray[Any]
    ) -> dict[str, float]:
        """See :func:`regression_metrics`."""
        return regression_metrics(scores[:, 0], labels)

    def per_class(
        self,
        scores: NDArray[Any],
        labels: NDArray[Any],
        names: Sequence[str],
        thresholds: NDArray[Any],
    ) -> dict[str, dict[str, float]]:
        """Return nothing: numbers are no classes."""
        return {}

    def predicted(self, scores: NDArray[Any], thresholds: NDArray[Any]) -> NDArray[Any]:
        """Return the numbers; see :class:`ProblemType`."""
        return scores[:, 0]

    def answer(
        self, logits: Tensor, names: Sequence[str], thresholds: NDArray[Any]
    ) -> dict[str, Any]:
        """Return the number; see :class:`ProblemType`."""
        return {"prediction": float(logits[0])}


def problem_type_of(values: Sequence[Any], feature: Any, separator: str | None) -> str:
    """Guess the problem type from a label column.

    Lists, or a separator, mean several labels; numbers of which one has a fraction mean regression;
    all else is one label a text.
    """
    present = [value for value in values if value is not None]
    if separator is not None or any(isinstance(value, list) for value in present):
        return "multi_label_classification"
    if isinstance(feature, ClassLabel):
        return "single_label_classification"
    fractions = False
    for value in present:
        number = as_number(value)
        if number is None:
            return "single_label_classification"
        fractions = fractions or number % 1 != 0
    return "regression" if fractions else "single_label_classification"


def make_problem_type(name: str, separator: str | None) -> ProblemType:
    """Return the problem type of that name."""
    if name == "multi_label_classification":
        return MultiLabel(separator)
    return Regression() if name == "regression" else SingleLabel()


def best_f1_thresholds(scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Return for each label the probability from which on its F1 is highest.

    Args:
        scores: Logits, shape ``(rows, labels)``.
        labels: 0 or 1, NaN where not known, the same shape.
    """
    shares = torch.from_numpy(scores).sigmoid().numpy()
    chosen = np.full(scores.shape[1], HALF)
    for index in range(scores.shape[1]):
        known = ~np.isnan(labels[:, index])
        if not labels[known, index].any():
            continue
        precision, recall, steps = precision_recall_curve(
            labels[known, index], shares[known, index]
        )
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        chosen[index] = steps[int(f1[:-1].argmax())]
    return chosen


def as_thresholds(given: Thresholds, names: Sequence[str]) -> NDArray[Any]:
    """Return one probability a label; ``best_f1`` is one half until it is known.

    Raises:
        HftuneError: A label is unknown or a value is no probability.
    """
    if given is None or isinstance(given, str):
        return np.full(len(names), HALF)
    by_name = given if isinstance(given, Mapping) else dict.fromkeys(names, given)
    if unknown := sorted(set(by_name) - set(names)):
        raise HftuneError(
            f"evaluation.thresholds: unknown labels {', '.join(unknown)}",
            hint=f"labels: {', '.join(names[:20])}",
        )
    if not all(0 < value < 1 for value in by_name.values()):
        raise HftuneError("evaluation.thresholds: a threshold is a probability between 0 and 1")
    return np.array([by_name.get(name, HALF) for name in names])


def as_number(value: Any) -> float | None:
    """Return a cell as a finite number, or None where it is none."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _refuse_missing(values: Sequence[Any], column: str) -> None:
    missing = [
        index + 1
        for index, value in enumerate(values)
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    ]
    if missing:
        more = f" and {len(missing) - SHOWN_ROWS} more" if len(missing) > SHOWN_ROWS else ""
        rows = ", ".join(map(str, missing[:SHOWN_ROWS]))
        raise HftuneError(f"column {column!r}: no label in row {rows}{more}")


def _label_order(label: str) -> tuple[int, float, str]:
    """Numbers in their order, then names in theirs."""
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    return (1, 0.0, label) if math.isnan(number) else (0, number, label)
