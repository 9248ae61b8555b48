# SPDX-License-Identifier: Apache-2.0
"""What a kind of labels answers: how they are read, encoded, predicted and measured."""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hftune.core.errors import HftuneError

SHOWN_ROWS = 5


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


def as_number(value: Any) -> float | None:
    """Return a cell as a finite number, or None where it is none."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def refuse_missing(values: Sequence[Any], column: str) -> None:
    """Raise :class:`HftuneError` that names the rows without a label."""
    missing = [
        index + 1
        for index, value in enumerate(values)
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    ]
    if missing:
        more = f" and {len(missing) - SHOWN_ROWS} more" if len(missing) > SHOWN_ROWS else ""
        rows = ", ".join(map(str, missing[:SHOWN_ROWS]))
        raise HftuneError(f"column {column!r}: no label in row {rows}{more}")


def label_order(label: str) -> tuple[int, float, str]:
    """Numbers in their order, then names in theirs."""
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    return (1, 0.0, label) if math.isnan(number) else (0, number, label)
