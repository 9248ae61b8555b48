# SPDX-License-Identifier: Apache-2.0
"""Any number of labels a text, each with a threshold of its own."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, List
from numpy.typing import NDArray
from torch import Tensor

from hftune.core.errors import HftuneError
from hftune.core.registry import MULTI_LABEL
from hftune.data.split import Keys
from hftune.evaluation.multi_label_metrics import multi_label_metrics, per_label_metrics
from hftune.losses.loss import in_full
from hftune.tasks.problem_types.problem_type import (
    HALF,
    LEAST,
    LabelSet,
    ProblemType,
    Thresholds,
    check_thresholds,
    label_order,
)


class MultiLabel(ProblemType):
    """Any number of labels a text, none included.

    Args:
        separator: What stands between the labels of a cell that is text.
    """

    name = MULTI_LABEL
    probe_logits = "torch.as_tensor(probe.predict_proba(features(**batch))).double().logit(1e-12)"
    loss = "bce_with_logits"
    metric_names = (
        "loss", "accuracy", "hamming_loss", "f1_micro", "f1_macro", "f1_weighted", "f1_samples",
        "precision_micro", "recall_micro", "roc_auc", "average_precision",
    )  # fmt: skip
    best_metric = "f1_macro"

    def __init__(self, separator: str | None = None) -> None:
        self.separator = separator

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of the labels; see :class:`ProblemType`."""
        binary = F.binary_cross_entropy_with_logits(in_full(logits), labels, reduction="none")
        return binary.mean(-1)

    def to_probabilities(self, logits: Tensor) -> Tensor:
        """Return the sigmoid; see :class:`ProblemType`."""
        return logits.sigmoid()

    def logits_of(self, pipeline: Any, features: NDArray[Any], num_labels: int) -> Tensor:
        """Return the logits of the probabilities; see :class:`ProblemType`."""
        shares = np.asarray(pipeline.predict_proba(features), np.float64)
        return torch.from_numpy(shares).logit(LEAST)

    def read(self, rows: Dataset, column: str) -> Any:
        """Return a list of names a row; see :class:`ProblemType`."""
        feature = rows.features[column]
        inner = getattr(feature, "feature", None) if isinstance(feature, List) else None
        read = []
        for number, cell in enumerate(rows[column][:], start=1):
            labels = self._cell(cell, f"column {column!r}: row {number}")
            if isinstance(inner, ClassLabel):
                labels = [inner.names[label] for label in labels]
            texts = [str(label) for label in labels]
            if len(set(texts)) < len(texts):
                marks = len(texts) > 2 and set(texts) <= {"0", "1"}
                raise HftuneError(
                    f"column {column!r}: row {number} has a label twice: {cell!r:.60}",
                    hint="name the labels in place of 0 and 1 for each: [1] for [0, 1, 0]"
                    if marks
                    else None,
                )
            read.append(texts)
        return read

    def _cell(self, cell: Any, where: str) -> list[Any]:
        if isinstance(cell, str) and self.separator is not None:
            if cell.startswith("[") and cell.endswith("]"):
                raise HftuneError(
                    f"{where} is a list: {cell!r:.60}",
                    hint="a list needs no data.label_separator; leave it out",
                )
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
            raise HftuneError(f"{where} is no list of labels: {cell!r:.60}", hint=_hint(cell))
        return cell

    def names(self, rows: Dataset) -> list[str]:
        """Return numbers in their order, then names in theirs; see :class:`ProblemType`."""
        present = self.occurring(rows)
        if not present:
            raise HftuneError("no row has a label")
        return sorted(present, key=label_order)

    def occurring(self, rows: Dataset) -> set[str]:
        """Return the labels of all rows; see :class:`ProblemType`."""
        return {name for row in rows["label"] for name in row}

    def strata(self, rows: Dataset) -> Keys:
        """Keep each row's rarest label alike; see :class:`ProblemType`."""
        labels = rows["label"][:]
        counts = Counter(name for row in labels for name in row)
        return [min(row, key=lambda name: (counts[name], name), default="") for row in labels]

    def encode(self, labels: Sequence[Any], names: Sequence[str]) -> list[Any]:
        """Return 0.0 or 1.0 for each name; see :class:`ProblemType`."""
        return [[float(name in row) for name in names] for row in map(set, labels)]

    def counts(self, encoded: Any, num_classes: int) -> NDArray[np.integer[Any]]:
        """Count the positives; see :class:`ProblemType`."""
        counts: NDArray[np.int64] = np.nansum(np.asarray(encoded), axis=0).astype(np.int64)
        return counts

    def thresholds(self, given: Thresholds, names: Sequence[str]) -> NDArray[Any]:
        """Return one probability a label; see :func:`as_thresholds`."""
        return as_thresholds(given, names)

    def best_thresholds(self, scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        """See :func:`best_f1_thresholds`."""
        return best_f1_thresholds(scores, labels)

    def metrics(
        self, scores: NDArray[Any], labels: NDArray[Any], known: LabelSet
    ) -> dict[str, float]:
        """See :func:`multi_label_metrics`."""
        return multi_label_metrics(scores, labels, known.thresholds)

    def per_class(
        self, scores: NDArray[Any], labels: NDArray[Any], known: LabelSet
    ) -> dict[str, dict[str, float]]:
        """See :func:`per_label_metrics`."""
        return per_label_metrics(scores, labels, known.names, known.thresholds)

    def predicted(self, scores: NDArray[Any], known: LabelSet) -> NDArray[Any]:
        """Return 0 or 1 for each label; see :class:`ProblemType`."""
        shares = torch.from_numpy(scores).sigmoid().numpy()
        return (shares >= known.thresholds).astype(np.int64)

    def answer(self, logits: Tensor, known: LabelSet) -> dict[str, Any]:
        """Return the labels at or above their thresholds, and all probabilities."""
        shares = logits.sigmoid().tolist()
        above = zip(known.names, shares, known.thresholds, strict=True)
        return {
            "prediction": [name for name, share, threshold in above if share >= threshold],
            "scores": dict(zip(known.names, shares, strict=True)),
        }


def _hint(cell: Any) -> str:
    """What to write in place of a cell that is no list of labels."""
    if isinstance(cell, str):
        return "name what separates them: data: {label_separator: ...}"
    if cell is None:
        return "write [] for a row without labels"
    return 'a list holds texts or whole numbers: ["a", "b"]'


def best_f1_thresholds(scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Return for each label the probability from which on its F1 is highest.

    Args:
        scores: Logits, shape ``(rows, labels)``.
        labels: 0 or 1, NaN where not known, the same shape.
    """
    from sklearn.metrics import precision_recall_curve

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
    check_thresholds(by_name, names)
    return np.array([by_name.get(name, HALF) for name in names])
