# SPDX-License-Identifier: Apache-2.0
"""Columns are guessed only where one guess is possible."""

import re

import pytest

from hftune.core.errors import HftuneError
from hftune.data.columns import Role, find_columns

ROLES = (
    Role("text", ("sentence", "review")),
    Role("label", ("category",)),
    Role("pair", ("context", "passage"), required=False),
)


@pytest.mark.parametrize(
    ("columns", "given", "expected"),
    [
        (["text", "label"], {}, {"text": "text", "label": "label"}),
        (["label", "review"], {}, {"text": "review", "label": "label"}),
        (["Review", "CATEGORY"], {}, {"text": "Review", "label": "CATEGORY"}),
        (["text", "review", "label"], {}, {"text": "text", "label": "label"}),
        (["text", "a", "label"], {"text": "a"}, {"text": "a", "label": "label"}),
        (["a", "b"], {"text": "a", "label": "b"}, {"text": "a", "label": "b"}),
        (["text", "label", "context"], {}, {"text": "text", "label": "label", "pair": "context"}),
        (["sentence", "review", "label"], {"pair": "review"},
         {"pair": "review", "text": "sentence", "label": "label"}),
        (["text", "label", "review"], {"label": "text"}, {"label": "text", "text": "review"}),
        (["Text", "LABEL"], {}, {"text": "Text", "label": "LABEL"}),
    ],
)  # fmt: skip
def test_found(columns: list[str], given: dict[str, str], expected: dict[str, str]) -> None:
    assert find_columns(columns, ROLES, given) == expected


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        (["text", "label"], {"txet": "text"},
         "data.columns: unknown role 'txet'; roles: ['text', 'label', 'pair']"),
        (["text", "label"], {"text": "body"},
         "data.columns: no column 'body'; columns: ['text', 'label']"),
        (["review", "sentence", "label"], {},
         "data.columns: text could be sentence or review; "
         "columns: ['review', 'sentence', 'label']\nsay which: columns: {text: sentence}"),
        (["text", "y"], {},
         "no column for label; columns: ['text', 'y']\nsay which: data: {columns: {label: y}}"),
        (["context", "label"], {}, "no column for text"),
    ],
)  # fmt: skip
def test_refused(columns: list[str], given: dict[str, str], message: str) -> None:
    with pytest.raises(HftuneError, match=f"^{re.escape(message)}"):
        find_columns(columns, ROLES, given)


def test_two_columns_for_an_optional_role_are_not_guessed_between() -> None:
    columns = ["text", "label", "passage", "context"]
    with pytest.raises(HftuneError, match="pair could be context or passage"):
        find_columns(columns, ROLES, {})
    assert find_columns(columns, ROLES, {"pair": "passage"})["pair"] == "passage"
