# SPDX-License-Identifier: Apache-2.0
"""Metrics of tagged words: of entities if the tags mark them, else of each tag."""

import itertools
from collections.abc import Sequence

from hftune.evaluation.entities import Tags, entity_metrics, marks_entities, per_kind_metrics

NAMES = ("precision", "recall", "f1")


def tagging_metrics(
    predicted: Sequence[Tags], true: Sequence[Tags], *, entities: bool
) -> dict[str, float]:
    """Return the accuracy over all words, and precision, recall and F1.

    Args:
        predicted: Tags of each row.
        true: Tags of the annotators, in the same form.
        entities: Whether to count entities instead of words.

    Example:
        >>> tagging_metrics([["NOUN", "VERB"]], [["NOUN", "NOUN"]], entities=False)["accuracy"]
        0.5
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    flat_true, flat_predicted = _flat(true), _flat(predicted)
    result = {"accuracy": float(accuracy_score(flat_true, flat_predicted))}
    if entities:
        return {**result, **entity_metrics(predicted, true)}
    for average in ("macro", "weighted"):
        figures = precision_recall_fscore_support(
            flat_true, flat_predicted, average=average, zero_division=0
        )
        result |= {
            f"{name}_{average}": float(figure)
            for name, figure in zip(NAMES, figures[:3], strict=True)
        }
    return result


def per_tag_metrics(
    predicted: Sequence[Tags], true: Sequence[Tags], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 and support of each kind of entity, or of each plain tag.

    Args:
        predicted: Tags of each row.
        true: Tags of the annotators, in the same form.
        names: All tags.

    Example:
        >>> tags = per_tag_metrics([["NOUN", "VERB"]], [["NOUN", "NOUN"]], ["NOUN", "VERB"])
        >>> tags["NOUN"]["recall"]
        0.5
    """
    from sklearn.metrics import precision_recall_fscore_support

    if marks_entities(names):
        return per_kind_metrics(predicted, true)
    columns = precision_recall_fscore_support(
        _flat(true), _flat(predicted), labels=list(names), zero_division=0
    )
    keys = (*NAMES, "support")
    return {
        name: {key: float(column[index]) for key, column in zip(keys, columns, strict=True)}
        for index, name in enumerate(names)
    }


def _flat(rows: Sequence[Tags]) -> list[str]:
    return list(itertools.chain.from_iterable(rows))
