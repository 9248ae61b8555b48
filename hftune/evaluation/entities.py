# SPDX-License-Identifier: Apache-2.0
"""Entities out of the tags of words, and how many were found.

One rule reads IOB1, IOB2, BIOES and BILOU, that of the CoNLL-2000 scorer ``conlleval`` and of
seqeval: an entity begins at B, S and U, and at an I, E or L that has nothing of its kind to
continue; it ends before the next beginning, before O, and after E, L, S and U.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

OUTSIDE = "O"
TAG = re.compile(r"[BIESLU](-.+)?")
UNTYPED = "_"  # seqeval's word for the kind of a bare B or I

Tags = Sequence[str]
Entity = tuple[str, int, int]


def marks_entities(names: Iterable[str]) -> bool:
    """Tell whether tags mark entities, as ``B-city`` and ``O`` do, or are plain, as ``NOUN``."""
    inside = [name for name in names if name != OUTSIDE]
    return bool(inside) and all(TAG.fullmatch(name) for name in inside)


def kind_of(tag: str) -> str:
    """Return the kind of entity that a tag belongs to."""
    return tag[2:] or UNTYPED


def entities(tags: Tags) -> list[Entity]:
    """Return ``(kind, first word, word after the last)`` of each entity.

    >>> entities(["B-city", "I-city", "O", "I-person"])
    [('city', 0, 2), ('person', 3, 4)]
    """
    found: list[Entity] = []
    start = 0
    previous = OUTSIDE
    for index, tag in enumerate([*tags, OUTSIDE]):
        if not _continues(previous, tag):
            if previous != OUTSIDE:
                found.append((kind_of(previous), start, index))
            start = index
        previous = tag
    return found


def _continues(previous: str, tag: str) -> bool:
    inside = tag[0] in "IEL" and tag != OUTSIDE
    return inside and previous[0] in "BI" and kind_of(previous) == kind_of(tag)


def scheme_of(rows: Iterable[Tags]) -> tuple[str, int]:
    """Return the name of the scheme, and how many entities begin against it with I.

    In IOB1 an entity begins with I, and with B only where it follows one of its own kind.
    """
    prefixes: Counter[str] = Counter()
    plain_begins = inside_begins = 0
    for tags in rows:
        previous = OUTSIDE
        for tag in tags:
            if tag != OUTSIDE:
                prefixes[tag[0]] += 1
                same = previous != OUTSIDE and kind_of(previous) == kind_of(tag)
                plain_begins += tag[0] == "B" and not same
                inside_begins += tag[0] in "IEL" and not _continues(previous, tag)
            previous = tag
    if prefixes["L"] or prefixes["U"]:
        return "BILOU", inside_begins
    if prefixes["E"] or prefixes["S"]:
        return "BIOES", inside_begins
    if inside_begins and not plain_begins:
        return "IOB1", 0
    return "IOB2", inside_begins


def entity_metrics(predicted: Sequence[Tags], true: Sequence[Tags]) -> dict[str, float]:
    """Return precision, recall and F1 over all entities, and their plain means over the kinds.

    An entity is right if its kind and both its ends are. 0 for a quotient by 0.

    Args:
        predicted: Tags of each row.
        true: The same by the annotators.
    """
    right, said, there = _counts(predicted, true)
    kinds = per_kind_metrics(predicted, true).values()
    names = ("precision", "recall", "f1")
    means = {f"{n}_macro": sum(kind[n] for kind in kinds) / max(len(kinds), 1) for n in names}
    return {**_scores(right.total(), said.total(), there.total()), **means}


def per_kind_metrics(
    predicted: Sequence[Tags], true: Sequence[Tags]
) -> dict[str, dict[str, float]]:
    """Return kind -> precision, recall, F1 and support, of kinds that occur on either side."""
    right, said, there = _counts(predicted, true)
    return {
        kind: {
            **_scores(right[kind], said[kind], there[kind]),
            "support": float(there[kind]),
        }
        for kind in sorted(said.keys() | there.keys())
    }


def _counts(
    predicted: Sequence[Tags], true: Sequence[Tags]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Entities by kind: rightly predicted, predicted, annotated."""
    right: Counter[str] = Counter()
    said: Counter[str] = Counter()
    there: Counter[str] = Counter()
    for guess, truth in zip(predicted, true, strict=True):
        guessed, annotated = entities(guess), entities(truth)
        said.update(kind for kind, _, _ in guessed)
        there.update(kind for kind, _, _ in annotated)
        right.update(kind for kind, _, _ in set(guessed) & set(annotated))
    return right, said, there


def _scores(right: int, said: int, there: int) -> dict[str, float]:
    return {
        "precision": right / said if said else 0.0,
        "recall": right / there if there else 0.0,
        "f1": 2 * right / (said + there) if said + there else 0.0,
    }
