# SPDX-License-Identifier: Apache-2.0
"""One label a text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from hftune.core.errors import HftuneError
from hftune.core.registry import SINGLE_LABEL
from hftune.data.arrow import codes, column_array
from hftune.data.select import distinct_values, label_column
from hftune.data.split import Keys
from hftune.evaluation.classification import classification_metrics, log_loss, per_class_metrics
from hftune.evaluation.decisions import best_macro_f1_thresholds, decided
from hftune.losses.of_rows import row_losses
from hftune.tasks.problem_types.problem_type import (
    LEAST,
    LabelSet,
    ProblemType,
    Thresholds,
    check_thresholds,
    label_order,
)


class SingleLabel(ProblemType):
    """One label a text."""

    name = SINGLE_LABEL
    probe_logits = (
        "torch.zeros(1, NUM_LABELS).double().index_copy(1, torch.as_tensor(probe.classes_), "
        "torch.as_tensor(probe.predict_proba(features(**batch)))).clamp(min=1e-12).log()"
    )
    loss = "cross_entropy"
    metric_names = (
        "loss", "accuracy", "mcc", "precision_macro", "recall_macro", "f1_macro",
        "precision_weighted", "recall_weighted", "f1_weighted", "roc_auc", "average_precision",
    )  # fmt: skip
    best_metric = "f1_macro"

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return cross-entropies; see :class:`ProblemType`."""
        return row_losses(logits, labels)

    def to_probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax; see :class:`ProblemType`."""
        return logits.softmax(-1)

    def logits_of(self, pipeline: Any, features: NDArray[Any], num_labels: int) -> Tensor:
        """Return the logarithms of the probabilities; see :class:`ProblemType`."""
        whole = np.zeros((len(features), num_labels))
        whole[:, pipeline.classes_] = np.asarray(pipeline.predict_proba(features), np.float64)
        return torch.from_numpy(whole).clamp(min=LEAST).log()

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

    def thresholds(self, given: Thresholds, names: Sequence[str]) -> NDArray[Any]:
        """Return what probabilities are divided by; one number is that of the second of two.

        Of two classes a threshold left out is the rest to 1; of more it is 1 over their number.
        """
        even = np.full(len(names), 1 / max(len(names), 1))
        if given is None or isinstance(given, str):
            return even
        if not isinstance(given, Mapping):
            if len(names) != 2:
                raise HftuneError(
                    f"evaluation.thresholds: {given} is the threshold of the second of two "
                    f"classes, and there are {len(names)}",
                    hint="say label: threshold, or best_f1",
                )
            given = {names[1]: given}
        check_thresholds(given, names)
        if len(names) == 2 and len(given) == 1:
            ((name, value),) = given.items()
            given = {other: value if other == name else 1 - value for other in names}
        return np.array([given.get(name, rest) for name, rest in zip(names, even, strict=True)])

    def best_thresholds(self, scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        """See :func:`best_macro_f1_thresholds`."""
        return best_macro_f1_thresholds(scores, labels)

    def metrics(
        self, scores: NDArray[Any], labels: NDArray[Any], known: LabelSet
    ) -> dict[str, float]:
        """See :func:`classification_metrics`; the loss is of the model's own probabilities."""
        figures = classification_metrics(
            known.corrected(scores), labels, self.predicted(scores, known)
        )
        return {**figures, "loss": log_loss(scores, labels)}

    def per_class(
        self, scores: NDArray[Any], labels: NDArray[Any], known: LabelSet
    ) -> dict[str, dict[str, float]]:
        """See :func:`per_class_metrics`; with the thresholds, where they are not all equal."""
        rows = per_class_metrics(self.predicted(scores, known), labels, known.names)
        if np.ptp(known.thresholds) > 0:
            for row, threshold in zip(rows.values(), known.thresholds, strict=True):
                row["threshold"] = float(threshold)
        return rows

    def predicted(self, scores: NDArray[Any], known: LabelSet) -> NDArray[Any]:
        """Return the id of the highest probability over threshold; see :class:`ProblemType`."""
        return decided(known.corrected(scores), known.thresholds)

    def answer(self, logits: Tensor, known: LabelSet) -> dict[str, Any]:
        """Return the label given, its probability and all of them; see :class:`ProblemType`."""
        scores = known.corrected(logits.numpy())
        shares = softmax(scores, -1).tolist()
        best = int(decided(scores, known.thresholds))
        return {
            "prediction": known.names[best],
            "score": shares[best],
            "scores": dict(zip(known.names, shares, strict=True)),
        }
