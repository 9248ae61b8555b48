# SPDX-License-Identifier: Apache-2.0
"""Report on rows: duplicates, leakage between parts, lengths, scripts, labels that disagree.

Two texts count as the same as :mod:`hftune.data.same` says.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from hftune.core.console import number_of
from hftune.data.arrow import codes, column_array, column_batches, picked
from hftune.data.same import folded, hashes, pair_hashes, plain

TEXT_COLUMNS = ("text", "text_pair", "prompt", "completion", "messages", "tokens")
PERCENTILES = (50, 90, 99, 100)
SCRIPT_SAMPLE = 10_000
SHOWN_SCRIPTS = 5
SHOWN_TEXT = 60

#: First words of Unicode's names of letters that do not say the script themselves.
_SCRIPTS = {"Cjk": "Han", "Ideographic": "Han"}
_FORMS = {"Fullwidth", "Halfwidth", "Modifier", "Mathematical", "Double-Struck", "Script"}


@dataclass(frozen=True)
class Texts:
    """The texts of a part, a number each.

    Attributes:
        keys: 64 bits a row, equal for texts that are the same.
        characters: Length of each row, its columns together.
        blank: Which rows have no visible character.
    """

    keys: NDArray[np.uint64]
    characters: NDArray[np.int32]
    blank: NDArray[np.bool_]


def data_report(train: Dataset, validation: Dataset | None) -> dict[str, Any]:
    """Return the entries of ``data.json`` for the selected rows; empty for rows without text.

    Args:
        train: Selected training rows, a column a role.
        validation: Selected validation rows, if there are any.
    """
    texts = read_texts(train)
    if texts is None:
        return {}
    report: dict[str, Any] = {
        "duplicates": duplicates(texts),
        "characters": _percentiles(texts.characters),
        "scripts": scripts(train),
        "conflicting_labels": conflicts(train, texts),
    }
    held_out = None if validation is None else read_texts(validation)
    if held_out is not None:
        report["leakage"] = leakage(texts, held_out)
        report["validation_characters"] = _percentiles(held_out.characters)
    return report


def remarks(report: dict[str, Any]) -> list[str]:
    """Return the sentences of a report that the user should not miss."""
    said = []
    if shared := report.get("leakage"):
        rows = number_of(
            shared,
            "validation row has a text that stands",
            "validation rows have texts that stand",
        )
        said.append(f"{rows} in the training rows, too")
    conflicting = report.get("conflicting_labels") or {}
    if number := conflicting.get("texts"):
        labels = ", ".join(map(str, conflicting["example"]["labels"]))
        said.append(
            f"{number_of(number, 'text has', 'texts have')} different labels in the training rows, "
            f"such as {conflicting['example']['text']!r} ({labels})"
        )
    return said


def read_texts(rows: Dataset) -> Texts | None:
    """Return the keys and lengths of all rows, column by column; None without a text column."""
    parts: list[Texts] = []
    for name in (name for name in TEXT_COLUMNS if name in rows.column_names):
        keys: list[NDArray[np.uint64]] = []
        lengths: list[NDArray[np.int32]] = []
        blank: list[NDArray[np.bool_]] = []
        for batch in column_batches(rows, name):
            cells = batch.to_pylist()
            texts = [plain(cell) for cell in cells]
            keys.append(hashes(map(folded, cells)))
            lengths.append(np.fromiter(map(len, texts), np.int32))
            blank.append(np.fromiter((not text or text.isspace() for text in texts), bool))
        parts.append(Texts(np.concatenate(keys), np.concatenate(lengths), np.concatenate(blank)))
    if not parts:
        return None
    whole = parts[0]
    for part in parts[1:]:
        whole = Texts(
            pair_hashes(whole.keys, part.keys),
            whole.characters + part.characters,
            whole.blank & part.blank,
        )
    return whole


def duplicates(texts: Texts) -> int:
    """Return how many rows repeat an earlier one."""
    keys = np.sort(texts.keys[~texts.blank])
    return int((keys[1:] == keys[:-1]).sum())


def leakage(train: Texts, validation: Texts) -> int:
    """Return how many validation rows have a text that a training row has."""
    known = np.sort(train.keys[~train.blank])
    asked = validation.keys[~validation.blank]
    places = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return int((known[places] == asked).sum()) if len(known) else 0


def conflicts(rows: Dataset, texts: Texts) -> dict[str, Any]:
    """Return how many texts, and rows of them, have labels that disagree, and one such text.

    Empty where no row has a name for a label.
    """
    if "label" not in rows.column_names:
        return {}
    kind = rows.data.schema.field("label").type
    if not any(
        test(kind) for test in (pa.types.is_list, pa.types.is_string, pa.types.is_large_string)
    ):
        return {}
    order = _repeated(texts)
    if len(order) == 0:
        return {"texts": 0, "rows": 0}
    keys = texts.keys[order]
    numbers, names = codes(column_array(picked(rows, order), "label"))
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    lowest, highest = np.minimum.reduceat(numbers, starts), np.maximum.reduceat(numbers, starts)
    sizes = np.diff(starts, append=len(keys))
    wrong = np.flatnonzero(lowest != highest)
    found: dict[str, Any] = {"texts": len(wrong), "rows": int(sizes[wrong].sum())}
    if len(wrong):
        first = wrong[np.argmin(order[starts[wrong]])]
        mine = slice(starts[first], starts[first] + sizes[first])
        row = rows[int(order[mine][0])]
        text = " | ".join(plain(row[name]) for name in TEXT_COLUMNS if name in row)
        labels_here = [names[number] for number in dict.fromkeys(numbers[mine].tolist())]
        found["example"] = {"text": text[:SHOWN_TEXT], "labels": labels_here}
    return found


def _repeated(texts: Texts) -> NDArray[np.int64]:
    """Return the rows whose text another row repeats, equal texts side by side."""
    order = np.flatnonzero(~texts.blank)
    order = order[np.argsort(texts.keys[order], kind="stable")]
    keys = texts.keys[order]
    alike = keys[1:] == keys[:-1]
    return order[np.append(alike, False) | np.insert(alike, 0, False)] if len(order) else order


def scripts(rows: Dataset, seed: int = 0) -> dict[str, float]:
    """Return the share of each script among the letters of at most ``SCRIPT_SAMPLE`` rows."""
    if len(rows) > SCRIPT_SAMPLE:
        drawn = np.random.default_rng(seed).permutation(len(rows))[:SCRIPT_SAMPLE]
        rows = rows.select(np.sort(drawn))
    characters: Counter[str] = Counter()
    for name in (name for name in TEXT_COLUMNS if name in rows.column_names):
        for batch in column_batches(rows, name):
            characters.update("".join(map(plain, batch.to_pylist())))
    letters: Counter[str] = Counter()
    for character, count in characters.items():
        if character.isalpha():
            letters[script(character)] += count
    total = letters.total()
    return {name: round(count / total, 4) for name, count in letters.most_common()}


@cache
def script(letter: str) -> str:
    """Return the script of a letter, from its Unicode name: ``Latin``, ``Han``, ``Cyrillic``."""
    words = unicodedata.name(letter, "Unnamed").title().split()
    first = next((word for word in words if word not in _FORMS), words[0])
    return _SCRIPTS.get(first, first)


def label_counts(rows: Dataset, names: Iterable[str]) -> NDArray[np.int64]:
    """Count the selected rows of each label; a row of several labels counts for each."""
    labels = column_array(rows, "label")
    if pa.types.is_list(labels.type):
        labels = pc.list_flatten(labels)
    counted = {item["values"]: item["counts"] for item in pc.value_counts(labels).to_pylist()}
    return np.array([counted.get(name, 0) for name in names], dtype=np.int64)


def imbalance(counts: NDArray[np.integer[Any]]) -> float:
    """Return how many times the largest class is as large as the smallest that has rows."""
    present = counts[counts > 0]
    return round(float(present.max() / present.min()), 2) if len(present) else 1.0


def _percentiles(lengths: NDArray[np.int32]) -> dict[str, int]:
    found = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
    return dict(zip(map(str, PERCENTILES), map(int, found), strict=True))
