# SPDX-License-Identifier: Apache-2.0
"""Plain tags are measured by word, by hand."""

import pytest

from hftune.evaluation.tagging import per_tag_metrics, tagging_metrics

TRUE = [["N", "V", "N"], ["V"]]
PREDICTED = [["N", "N", "N"], ["V"]]


def test_plain_tags_by_hand() -> None:
    metrics = tagging_metrics(PREDICTED, TRUE, entities=False)
    noun, verb = 2 * (2 / 3) * 1 / (2 / 3 + 1), 2 * 1 * 0.5 / 1.5
    assert metrics["accuracy"] == 0.75
    assert metrics["f1_macro"] == pytest.approx((noun + verb) / 2)
    assert metrics["recall_macro"] == pytest.approx(0.75)
    per_tag = per_tag_metrics(PREDICTED, TRUE, ["N", "V", "X"])
    assert per_tag["N"] == pytest.approx(
        {"precision": 2 / 3, "recall": 1.0, "f1": noun, "support": 2.0}
    )
    assert per_tag["X"]["support"] == 0


def test_accuracy_counts_every_word_beside_entities() -> None:
    metrics = tagging_metrics([["O", "B-a", "I-a"]], [["O", "B-a", "O"]], entities=True)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["f1"] == 0
