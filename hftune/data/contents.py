# SPDX-License-Identifier: Apache-2.0
"""Tell from the cells of a column if it has text, labels, numbers, lists or conversations."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from datasets import Dataset

from hftune.data.chat_template import is_conversation
from hftune.data.conversations import is_sharegpt

Kind = Literal["text", "labels", "numbers", "lists", "conversations", "names", "nothing"]

LOOKED_AT = 5000
#: A label is short and occurs in several rows.
LABEL_CHARACTERS = 60
LABEL_SHARE = 0.2
FEW_LABELS = 20
DATE = re.compile(r"\d{4}-\d\d-\d\d|\d{1,2}[./]\d{1,2}[./]\d{2,4}")


@dataclass(frozen=True)
class Contents:
    """A short description of the cells of a column.

    Attributes:
        column: Name of the column.
        kind: ``names`` are texts or numbers that hardly repeat, such as ids and titles of one word.
        distinct: Number of different cells.
        length: Mean number of characters of a text, or of items of a list.

    Example:
        >>> Contents("team", "labels", distinct=4).describe()
        '4 labels'
    """

    column: str
    kind: Kind
    distinct: int = 0
    length: float = 0.0

    def describe(self) -> str:
        """Return the contents in words."""
        return {
            "text": f"text, {self.length:.0f} characters on average",
            "labels": f"{self.distinct} labels",
            "numbers": "numbers with fractions",
            "lists": f"lists of {self.length:.1f} items on average",
            "conversations": "conversations",
            "names": f"{self.distinct} different values",
            "nothing": "no values",
        }[self.kind]


def describe_columns(rows: Dataset) -> list[Contents]:
    """Describe each column from the first 5,000 rows; distinct values are counted in all rows.

    Example:
        >>> rows = Dataset.from_dict({"text": ["good day", "bad day"] * 3, "team": ["a", "b"] * 3})
        >>> [contents.kind for contents in describe_columns(rows)]
        ['labels', 'labels']
    """
    head = rows[:LOOKED_AT]
    found = [_contents(column, head[column]) for column in rows.column_names]
    return [_counted(item, rows) if item.kind in ("labels", "names") else item for item in found]


def _counted(item: Contents, rows: Dataset) -> Contents:
    if len(rows) <= LOOKED_AT:
        return item
    values = {str(cell) for cell in rows.unique(item.column) if cell is not None and cell != ""}
    return replace(item, distinct=len(values))


def _contents(column: str, cells: Sequence[object]) -> Contents:
    present = [cell for cell in cells if cell is not None and cell != ""]
    if not present:
        return Contents(column, "nothing")
    if all(is_conversation(cell) or is_sharegpt(cell) for cell in present):
        return Contents(column, "conversations")
    lists = [cell for cell in present if isinstance(cell, list)]
    if len(lists) == len(present):
        return Contents(column, "lists", 0, sum(map(len, lists)) / len(lists))
    texts = [str(cell) for cell in present]
    distinct = len(set(texts))
    length = sum(map(len, texts)) / len(texts)
    repeated = distinct <= max(FEW_LABELS, LABEL_SHARE * len(texts)) and distinct < len(texts)
    numbers = [_number(cell) for cell in present]
    if all(number is not None for number in numbers):
        fractions = any(number is not None and number % 1 for number in numbers)
        kind: Kind = "numbers" if fractions else "labels" if repeated else "names"
    elif all(DATE.match(text) for text in texts):
        kind = "names"
    elif repeated and max(map(len, texts)) <= LABEL_CHARACTERS:
        kind = "labels"
    elif any(" " in text or not text.isascii() for text in texts):
        kind = "text"
    else:
        kind = "names"
    return Contents(column, kind, distinct, length)


def _number(cell: Any) -> float | None:
    try:
        number = float(cell)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
