# SPDX-License-Identifier: Apache-2.0
"""The report against hand-counted rows and a plain count over random ones."""

import numpy as np
import pytest
from datasets import Dataset

from hftune.data.report import data_report, imbalance, label_counts, remarks, script, scripts

TRAIN = {
    "text": ["One  two", "one two", "three", "Three ", "", "", "five"],
    "label": ["a", "a", "a", "b", "a", "b", "b"],
}


def test_hand_counted() -> None:
    held_out = Dataset.from_dict({"text": ["ONE two", "six", "", "five\n"], "label": list("abab")})
    report = data_report(Dataset.from_dict(TRAIN), held_out)
    assert report["duplicates"] == 2
    assert report["leakage"] == 2
    assert report["conflicting_labels"] == {
        "texts": 1, "rows": 2, "example": {"text": "three", "labels": ["a", "b"]}
    }  # fmt: skip
    assert report["characters"] == {"50": 5, "90": 8, "99": 8, "100": 8}
    assert report["scripts"] == {"Latin": 1.0}
    assert len(remarks(report)) == 2
    assert "2 validation rows" in remarks(report)[0]
    assert "'three' (a, b)" in remarks(report)[1]


@pytest.mark.parametrize("seed", range(5))
def test_as_a_plain_count_finds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    texts = [f"t{i}" for i in generator.integers(0, 60, 100)]
    labels = generator.choice(["x", "y", "z"], 100).tolist()
    rows = Dataset.from_dict({"text": texts, "label": labels})
    picked = generator.permutation(100)
    train, held_out = rows.select(picked[:80]), rows.select(picked[80:])
    report = data_report(train, held_out)
    kinds: dict[str, set[str]] = {}
    for row in train:
        kinds.setdefault(row["text"], set()).add(row["label"])
    torn = {text for text, seen in kinds.items() if len(seen) > 1}
    assert report["duplicates"] == 80 - len(kinds)
    assert report["leakage"] == sum(text in kinds for text in held_out["text"])
    assert report["conflicting_labels"]["texts"] == len(torn)
    assert report["conflicting_labels"]["rows"] == sum(t in torn for t in train["text"])
    counts = label_counts(train, ["x", "y", "z"])
    assert counts.tolist() == [list(train["label"]).count(name) for name in "xyz"]


def test_scripts() -> None:
    letters = {"a": "Latin", "ж": "Cyrillic", "漢": "Han", "ひ": "Hiragana", "\uff21": "Latin"}
    assert {letter: script(letter) for letter in letters} == letters
    assert scripts(Dataset.from_dict({"text": ["ab 12!", "жж漢漢"]})) == {
        "Latin": 0.3333, "Cyrillic": 0.3333, "Han": 0.3333
    }  # fmt: skip


def test_imbalance() -> None:
    assert imbalance(np.array([30, 0, 10])) == 3.0
