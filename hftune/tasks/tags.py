# SPDX-License-Identifier: Apache-2.0
"""Columns of words and tags, the order that tags have as labels, and the entities of a row."""

from collections.abc import Mapping, Sequence
from typing import Any

from hftune.core.errors import HftuneError
from hftune.evaluation.entities import OUTSIDE, entities, marks_entities
from hftune.tasks.words import text_and_spans

PREFIXES = "BILEUS"


def lists_of(values: list[Any], column: str, what: str) -> list[list[str]]:
    """Return the cells of a column as lists of text.

    Args:
        values: A list of texts, or of whole numbers, a row.
        column: Its name, for the message.
        what: The word for the items in it.

    Raises:
        HftuneError: A row has something else; the message names the first.
    """
    for number, value in enumerate(values, start=1):
        if not isinstance(value, list):
            raise HftuneError(
                f"column {column!r}: row {number} is no list of {what} but {value!r:.40}",
                hint="jsonl and parquet hold lists; .conll, .bio and .iob a word a line",
            )
        wrong = [item for item in value if not isinstance(item, str | int)]
        if wrong:
            raise HftuneError(f"column {column!r}: row {number} has {wrong[0]!r:.40} among {what}")
    return [[str(item) for item in value] for value in values]


def ordered_tags(names: set[str]) -> list[str]:
    """Put O first, then kind by kind, each with every prefix that any kind has.

    A kind whose entities all have one word in training may have longer ones elsewhere. Plain tags
    stand in order, numbers by value.
    """
    if not marks_entities(names):
        numbers = all(name.isdecimal() for name in names)
        return sorted(names, key=lambda name: (int(name) if numbers else 0, name))
    inside = names - {OUTSIDE}
    prefixes = sorted({name[0] for name in inside}, key=PREFIXES.index)
    tails = sorted({name[1:] for name in inside})
    return [OUTSIDE, *(prefix + tail for tail in tails for prefix in prefixes)]


def placed_entities(
    row: Mapping[str, Any], tags: Sequence[str | None], scores: Sequence[float | None]
) -> list[dict[str, Any]]:
    """Return the entities of a row with their text, their words and their mean probability.

    Args:
        row: ``tokens``, and ``text`` where the words come from one: then ``start`` and ``end`` are
            characters of it.
        tags: A tag a word; None where it has no token.
        scores: Their probabilities.
    """
    text, spans = text_and_spans(row)
    found = []
    for kind, first, stop in entities([tag or OUTSIDE for tag in tags]):
        start, end = spans[first][0], spans[stop - 1][1]
        places = {"start": start, "end": end} if "text" in row else {}
        certainty = [score for score in scores[first:stop] if score is not None]
        found.append(
            {
                "entity": kind,
                "start_word": first,
                "end_word": stop,
                **places,
                "text": text[start:end],
                "score": sum(certainty) / len(certainty),
            }
        )
    return found
