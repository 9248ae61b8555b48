# SPDX-License-Identifier: Apache-2.0
"""One label a text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from hftune.core.errors import HftuneError
from hftune.data.arrow import codes, column_array
from hftune.data.select import distinct_values, label_column
from hftune.data.split import Keys
from hftune.metrics.classification import classification_metrics, per_class_metrics
from hftune.tasks.problem_types.contract import LabelSet, ProblemType, label_order


class SingleLabel(ProblemType):
    """One label a text."""

    loss = "cross_entropy"
    metric_names = (
        "loss", "accuracy", "mcc", "precision_macro", "recall_macro", "f1_macro",
        "precision_weighted", "recall_weighted", "f1_weighted", "roc_auc", "average_precision",
    )  # fmt: skip
    best_metric = "f1_macro"

    def read(self, rows: Dataset, column: str) -> Any:
        """Return labels as text; see :func:`hftune.data.select.label_column`."""
        return label_column(rows, column)

    def names(self, rows: Dataset) -> list[str]:
        """Return numbers in their order, then names in theirs; see :class:`ProblemType`."""
        present = self.occurring(rows)
        if len(present) < 2:
            raise HftuneError(
                f"one class only: every label is {next(iter(present))!r}; a classifier needs two"
            )
        return sorted(present, key=label_order)

    def occurring(self, rows: Dataset) -> set[str]:
        """Return the labels; see :class:`ProblemType`."""
        return set(distinct_values(rows, "label"))

    def strata(self, rows: Dataset) -> Keys:
        """Keep the classes alike; see :class:`ProblemType`."""
        numbers, names = codes(column_array(rows, "label"))
        return [names[number] for number in numbers]

    def encode(self, labels: Sequence[Any], names: Sequence[str]) -> list[Any]:
        """Return ids; see :class:`ProblemType`."""
        ids = {name: index for index, name in enumerate(names)}
        return [ids[label] for label in labels]

    def counts(self, encoded: Any, num_classes: int) -> NDArray[np.integer[Any]]:
        """Count ids; see :class:`ProblemType`."""
        return np.bincount(np.asarray(encoded), minlength=num_classes)

    def metrics(
        self, scores: NDArray[Any], labels: NDArray[Any], known: LabelSet
    ) -> dict[str, float]:
        """See :func:`classification_metrics`."""
        return classification_metrics(scores, labels)

    def per_class(
        self, scores: NDArray[Any], labels: NDArray[Any], known: LabelSet
    ) -> dict[str, dict[str, float]]:
        """See :func:`per_class_metrics`."""
        return per_class_metrics(scores, labels, known.names)

    def predicted(self, scores: NDArray[Any], known: LabelSet) -> NDArray[Any]:
        """Return the id of the highest logit; see :class:`ProblemType`."""
        ids: NDArray[Any] = scores.argmax(-1)
        return ids

    def answer(self, logits: Tensor, known: LabelSet) -> dict[str, Any]:
        """Return the best label, its probability and all of them; see :class:`ProblemType`."""
        shares = logits.softmax(-1).tolist()
        best = int(np.argmax(shares))
        return {
            "prediction": known.names[best],
            "score": shares[best],
            "scores": dict(zip(known.names, shares, strict=True)),
        }
