# SPDX-License-Identifier: Apache-2.0
"""When two texts are the same: one notion for the split, for duplicates and for leakage.

Texts that differ only in white space, in case, or in how Unicode composes their letters are the
same. Conversations are when the same speakers say the same texts in the same turns.
"""

import unicodedata
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from hftune.data.arrow import column_batches

Hashes = NDArray[np.uint64]


def plain(cell: Any) -> str:
    """Return the text of a cell: a text itself, words joined, or the turns of a conversation."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    return "\n".join(map(_turn, cell)) if _is_conversation(cell) else " ".join(map(str, cell))


def folded(cell: Any) -> str:
    """Return a key for comparing cells; equal for cells that are the same."""
    if cell is not None and _is_conversation(cell):
        return "\n".join(f"{turn.get('role')} {_fold(_turn(turn))}" for turn in cell)
    return _fold(plain(cell))


def hashes(texts: Iterable[str]) -> Hashes:
    """Return 64 bits a text, the same in every process; two texts in 10**19 share theirs."""
    digests = (blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def pair_hashes(first: Hashes, second: Hashes) -> Hashes:
    """Return 64 bits a pair of hashes; the order of the two counts."""
    return first * np.uint64(0x9E3779B97F4A7C15) + second


def column_keys(rows: Dataset, *names: str) -> Hashes:
    """Return 64 bits a row, equal for rows that are the same in all of the columns.

    Args:
        rows: Selected rows.
        names: Columns of texts, of words, or of conversations.
    """
    keys, *others = (
        np.concatenate([hashes(map(folded, b.to_pylist())) for b in column_batches(rows, name)])
        for name in names
    )
    for other in others:
        keys = pair_hashes(keys, other)
    return keys


def _fold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _turn(turn: Any) -> str:
    return str(turn.get("content") or "")


def _is_conversation(cell: Any) -> bool:
    return isinstance(cell, list) and bool(cell) and isinstance(cell[0], dict)
