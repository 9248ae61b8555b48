# SPDX-License-Identifier: Apache-2.0
"""Read entities from the tags of words, and score predicted entities.

One rule reads IOB1, IOB2, BIOES and BILOU; the CoNLL-2000 scorer ``conlleval`` and seqeval use it
too. An entity begins at B, S and U, and at an I, E or L that continues no entity of its kind. It
ends before the next beginning, before O, and after E, L, S and U.
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
    """Tell whether tags mark entities, such as ``B-city``, or are plain, such as ``NOUN``.

    Example:
        >>> marks_entities(["O", "B-city", "I-city"]), marks_entities(["NOUN", "VERB"])
        (True, False)
    """
    inside = [name for name in names if name != OUTSIDE]
    return bool(inside) and all(TAG.fullmatch(name) for name in inside)


def kind_of(tag: str) -> str:
    """Return the kind of entity that a tag belongs to.

    Example:
        >>> kind_of("B-city"), kind_of("I")
        ('city', '_')
    """
    return tag[2:] or UNTYPED


def entities(tags: Tags) -> list[Entity]:
    """Return ``(kind, first word, word after the last)`` of each entity.

    Example:
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
    """Return the name of the tagging scheme, and the number of entities that violate it.

    An entity of IOB2, BIOES or BILOU that begins with an inner tag is a violation. In IOB1 an
    entity begins with I, and with B only if it follows an entity of its own kind.

    Example:
        >>> scheme_of([["B-city", "I-city", "O", "I-city"]])
        ('IOB2', 1)
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

    An entity is correct if its kind and both its ends are correct. A division by 0 gives 0.

    Args:
        predicted: Tags of each row.
        true: Tags of the annotators, in the same form.

    Example:
        >>> found = entity_metrics([["B-city", "O", "B-city"]], [["B-city", "O", "O"]])
        >>> found["precision"], found["recall"]
        (0.5, 1.0)
    """
    right, said, there = _counts(predicted, true)
    kinds = per_kind_metrics(predicted, true).values()
    names = ("precision", "recall", "f1")
    means = {f"{n}_macro": sum(kind[n] for kind in kinds) / max(len(kinds), 1) for n in names}
    return {**_scores(right.total(), said.total(), there.total()), **means}


def per_kind_metrics(
    predicted: Sequence[Tags], true: Sequence[Tags]
) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 and support by kind, for predicted and annotated kinds.

    Example:
        >>> per_kind_metrics([["B-city", "O"]], [["B-city", "B-city"]])["city"]["recall"]
        0.5
    """
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
    """Count the entities of each kind: correctly predicted, predicted, annotated."""
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
