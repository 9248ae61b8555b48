# SPDX-License-Identifier: Apache-2.0
"""Entities and their metrics against seqeval, on random tags of every scheme."""

import random
import warnings

import pytest
from seqeval.metrics import classification_report
from seqeval.metrics.sequence_labeling import get_entities

from hftune.evaluation.entities import (
    entities,
    entity_metrics,
    marks_entities,
    per_kind_metrics,
    scheme_of,
)

SCHEMES = ["BI", "I", "BIES", "BIS"]


def random_tags(seed: int, prefixes: str, rows: int = 50) -> list[list[str]]:
    drawn = random.Random(seed)
    names = ["O", "O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("a", "b-c", "d"))]
    return [drawn.choices(names, k=drawn.randrange(12)) for _ in range(rows)]


@pytest.mark.parametrize("prefixes", SCHEMES)
def test_entities_are_seqevals(prefixes: str) -> None:
    for tags in random_tags(0, prefixes, 500):
        theirs = [(kind, start, last + 1) for kind, start, last in get_entities(tags)]
        assert entities(tags) == theirs, tags


def test_bilou_is_bioes_by_other_letters() -> None:
    for tags in random_tags(1, "BIES", 200):
        other = [tag.replace("E-", "L-").replace("S-", "U-") for tag in tags]
        assert entities(other) == entities(tags)


def test_tags_without_a_kind() -> None:
    assert entities(["B", "I", "O", "I"]) == [("_", 0, 2), ("_", 3, 4)]


@pytest.mark.parametrize("prefixes", SCHEMES)
@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_seqevals(prefixes: str, seed: int) -> None:
    true = random_tags(seed, prefixes)
    drawn = random.Random(seed)
    names = sorted({tag for row in true for tag in row} - {"B-d"})
    predicted = [[tag if drawn.random() < 0.8 else drawn.choice(names) for tag in row]
                 for row in true]  # fmt: skip
    report = classification_report(true, predicted, output_dict=True, zero_division=0)
    ours = entity_metrics(predicted, true)
    for suffix, average in (("", "micro avg"), ("_macro", "macro avg")):
        for name, theirs in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score")):
            assert ours[f"{name}{suffix}"] == pytest.approx(report[average][theirs]), name
    kinds = per_kind_metrics(predicted, true)
    assert set(kinds) == {name for name in report if not name.endswith(" avg")}
    for kind, figures in kinds.items():
        assert figures["f1"] == pytest.approx(report[kind]["f1-score"])
        assert figures["support"] == report[kind]["support"]


def test_nothing_predicted_and_nothing_there() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing = entity_metrics([["O", "O"]], [["O", "O"]])
    assert set(nothing.values()) == {0.0}
    assert entity_metrics([["O"]], [["B-a"]])["recall"] == 0


@pytest.mark.parametrize(
    ("rows", "scheme"),
    [
        ([["B-a", "I-a", "O", "B-b"]], ("IOB2", 0)),
        ([["B-a", "I-a", "O", "I-b"]], ("IOB2", 1)),
        ([["I-a", "I-a", "B-a", "O", "I-b"]], ("IOB1", 0)),
        ([["B-a", "E-a", "S-b"]], ("BIOES", 0)),
        ([["B-a", "L-a", "U-b"]], ("BILOU", 0)),
        ([["O", "B-a"], ["I-a"]], ("IOB2", 1)),
    ],
)
def test_schemes(rows: list[list[str]], scheme: tuple[str, int]) -> None:
    assert scheme_of(rows) == scheme


@pytest.mark.parametrize(
    ("names", "marks"),
    [
        (["O", "B-a", "I-a"], True),
        (["B", "I", "O"], True),
        (["NOUN", "VERB", "O"], False),
        (["O"], False),
        (["B-a", "NOUN"], False),
    ],
)
def test_what_marks_entities(names: list[str], marks: bool) -> None:
    assert marks_entities(names) is marks
