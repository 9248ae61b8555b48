# SPDX-License-Identifier: Apache-2.0
"""What a kind of labels answers: how they are read, encoded, predicted and measured."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from hftune.core.errors import HftuneError
from hftune.core.task_rows import PROBLEM_TYPES, ProblemTypeRow
from hftune.data.split import Keys


@dataclass(frozen=True)
class LabelSet:
    """The labels that a model tells apart.

    Attributes:
        names: By id; empty where numbers are predicted.
        thresholds: Probability from which on each is given, where a text may have several; else
            what the probabilities are divided by before the highest is taken.
        shift: What is added to the logits for another prior, by id, or nothing.
    """

    names: Sequence[str]
    thresholds: NDArray[Any]
    shift: NDArray[Any] | float = 0.0

    def corrected(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Return logits whose probabilities hold for the prior where the model is used."""
        shifted: NDArray[Any] = scores + np.asarray(self.shift, scores.dtype)
        return shifted


#: As a recipe gives them: one for all, by label, or the word for those to be found.
Thresholds = float | dict[str, float] | str | None
HALF = 0.5
#: No probability is written as 0 or 1, whose logits are infinite.
LEAST = 1e-12


class ProblemType(ABC):
    """How labels are read, encoded, predicted and measured.

    Attributes:
        name: Value of ``config.problem_type``.
        probe_logits: Expression for the logits of a saved probe, in the program of its model card;
            ``NUM_LABELS`` stands for their number.
        loss: The loss if the recipe does not say.
        metric_names: What :meth:`metrics` returns.
        best_metric: What the best model is chosen by if the recipe does not say.
    """

    name: str
    probe_logits: str
    loss: str
    metric_names: tuple[str, ...]
    best_metric: str

    @property
    def row(self) -> ProblemTypeRow:
        """Facts about the problem type."""
        return PROBLEM_TYPES[self.name]

    @abstractmethod
    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the plain loss of each row, shape ``(B,)``."""

    @abstractmethod
    def to_probabilities(self, logits: Tensor) -> Tensor | None:
        """Return the probabilities of labels; None of numbers, which have none."""

    @abstractmethod
    def logits_of(self, pipeline: Any, features: NDArray[Any], num_labels: int) -> Tensor:
        """Return logits, or numbers, of a fitted scikit-learn pipeline, shape ``(rows, labels)``.

        A label that the pipeline was not fitted on has the least probability.
        """

    @abstractmethod
    def read(self, rows: Dataset, column: str) -> Any:
        """Return a column as labels, an Arrow column or a list; the message names bad rows."""

    @abstractmethod
    def names(self, rows: Dataset) -> list[str]:
        """Return the label names of selected rows, in their order.

        Raises:
            HftuneError: They are too few to learn from.
        """

    @abstractmethod
    def occurring(self, rows: Dataset) -> set[str]:
        """Return the label names of selected rows."""

    @abstractmethod
    def strata(self, rows: Dataset) -> Keys:
        """Return what both parts of a split of selected rows shall hold alike."""

    def remarks(self, rows: Dataset) -> list[str]:
        """Return what the user should know of the labels of selected rows."""
        return []

    @abstractmethod
    def encode(self, labels: Sequence[Any], names: Sequence[str]) -> list[Any]:
        """Return what the loss takes."""

    @abstractmethod
    def counts(self, encoded: Any, num_classes: int) -> NDArray[np.integer[Any]]:
        """Return how often each label occurs."""

    @abstractmethod
    def thresholds(self, given: Thresholds, names: Sequence[str]) -> NDArray[Any]:
        """Return one threshold a label, those that change nothing where none are known yet.

        Raises:
            HftuneError: A label is unknown, a value is no probability, or there is nothing to
                decide.
        """

    @abstractmethod
    def best_thresholds(self, scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        """Return the thresholds with the highest F1, from logits ``(rows, classes)``."""

    @abstractmethod
    def metrics(
        self, scores: NDArray[Any], labels: NDArray[Any], known: LabelSet
    ) -> dict[str, float]:
        """Return the metrics from logits ``(rows, classes)`` and encoded labels."""

    @abstractmethod
    def per_class(
        self, scores: NDArray[Any], labels: NDArray[Any], known: LabelSet
    ) -> dict[str, dict[str, float]]:
        """Return label name -> metrics."""

    @abstractmethod
    def predicted(self, scores: NDArray[Any], known: LabelSet) -> NDArray[Any]:
        """Return encoded predictions of all rows."""

    @abstractmethod
    def answer(self, logits: Tensor, known: LabelSet) -> dict[str, Any]:
        """Return what ``hftune predict`` writes of a row, from its logits ``(classes,)``."""


def check_thresholds(given: Mapping[str, float], names: Sequence[str]) -> None:
    """Raise :class:`HftuneError` if a label is unknown or a value is no probability."""
    if unknown := sorted(set(given) - set(names)):
        raise HftuneError(
            f"evaluation.thresholds: unknown labels {', '.join(unknown)}",
            hint=f"labels: {', '.join(names[:20])}",
        )
    if not all(0 < value < 1 for value in given.values()):
        raise HftuneError("evaluation.thresholds: a threshold is a probability between 0 and 1")


def as_number(value: Any) -> float | None:
    """Return a cell as a finite number, or None where it is none."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def label_order(label: str) -> tuple[int, float, str]:
    """Numbers in their order, then names in theirs."""
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    return (1, 0.0, label) if math.isnan(number) else (0, number, label)
