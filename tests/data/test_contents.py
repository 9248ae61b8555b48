# SPDX-License-Identifier: Apache-2.0
"""What columns hold."""

from typing import Any

import pytest
from datasets import Dataset

from hftune.data.contents import LOOKED_AT, describe_columns


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([f"the order {i} came late" for i in range(40)], "text"),
        (["你好", "再见", "谢谢"] + [f"第{i}句" for i in range(60)], "text"),
        (["red", "blue"] * 20, "labels"),
        (["very good", "bad"] * 20, "labels"),
        ([0, 1, 2, 1] * 10, "labels"),
        (["0", "1"] * 20, "labels"),
        ([True, False] * 20, "labels"),
        ([0.5, 1.0, 2.25, 3.0] * 10, "numbers"),
        (["0.5", "1", "2.25"] * 10, "numbers"),
        (list(range(40)), "names"),
        ([f"id-{i}" for i in range(40)], "names"),
        (["2024-01-01", "2024-01-02"] * 20, "names"),
        ([["a", "b"], ["a"]] * 20, "lists"),
        ([[{"role": "user", "content": "hi"}]] * 20, "conversations"),
        ([[{"from": "human", "value": "hi"}]] * 20, "conversations"),
        ([None, ""] * 20, "nothing"),
        (["red", None, "blue", "red"] * 10, "labels"),
    ],
)
def test_kinds(cells: list[Any], kind: str) -> None:
    assert describe_columns(Dataset.from_dict({"x": cells}))[0].kind == kind


def test_figures_in_words() -> None:
    rows = Dataset.from_dict({"a": ["two words", "now three words"], "b": [["x"], ["y", "z"]]})
    assert [item.describe() for item in describe_columns(rows)] == [
        "text, 12 characters on average",
        "lists of 1.5 items on average",
    ]


def test_labels_are_counted_in_all_rows() -> None:
    rows = Dataset.from_dict({"x": ["red", "blue"] * LOOKED_AT + ["green", "", None]})
    assert describe_columns(rows)[0].describe() == "3 labels"
