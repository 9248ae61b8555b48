# SPDX-License-Identifier: Apache-2.0
"""``train[:10%]``, ``train[100:200]+test``: the ``datasets`` words for a part of a split."""

import re
from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset, ReadInstruction, concatenate_datasets

from hftune.core.errors import HftuneError

_BOUND = r"-?\d+%?"
_PART = re.compile(rf"\s*(\w+)(\[({_BOUND})?:({_BOUND})?\](\(\w+\))?)?\s*")


def is_slice(value: object) -> bool:
    """Tell whether a value reads as slices and not as a file: ``train[:10%]``."""
    return (
        isinstance(value, str)
        and "[" in value
        and all(_PART.fullmatch(part) for part in value.split("+"))
        and not Path(value).exists()
    )


def take(splits: Mapping[str, Dataset], spec: str, key: str, path: object) -> Dataset:
    """Return the rows that a split's name, or slices of splits, stand for.

    Args:
        splits: Split name to rows.
        spec: Such as ``train`` or ``train[:10%]+test[-5:]``.
        key: The recipe's key, for the message.
        path: Where the splits come from, for the message.

    Raises:
        HftuneError: There is no such split, or a slice reaches beyond it, or holds nothing.
    """
    if spec in splits:
        rows = splits[spec]
        if len(rows) == 0:
            raise HftuneError(f"{path} [{spec}]: no rows")
        return rows
    parts = [_PART.fullmatch(part) for part in spec.split("+")]
    for part in parts:
        if part is None:
            raise HftuneError(
                f"{key}: {spec!r} is no split and no slice of one",
                hint="such as train, train[:10%], train[100:200] or train[:5%]+test",
            )
        name, bounds = part[1], (part[3], part[4])
        if name not in splits:
            raise HftuneError(f"{key}: {path} has no {name!r}; splits: {', '.join(splits)}")
        _check_bounds(bounds, len(splits[name]), f"{key}: {part[0].strip()}")
    lengths = {name: len(rows) for name, rows in splits.items()}
    try:
        pieces = ReadInstruction.from_spec(spec).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        raise HftuneError(f"{key}: {spec!r}: {error}") from error
    chosen = [_piece(splits[p.splitname], p.from_ or 0, p.to) for p in pieces]
    if not any(map(len, chosen)):
        raise HftuneError(f"{key}: {spec} of {path} holds no row; rows: {lengths}")
    return _joined([rows for rows in chosen if len(rows)])


def _check_bounds(bounds: tuple[str | None, str | None], rows: int, place: str) -> None:
    for bound in bounds:
        if bound is None:
            continue
        number, most = (int(bound[:-1]), 100) if bound.endswith("%") else (int(bound), rows)
        if abs(number) > most:
            raise HftuneError(f"{place}: {bound} is beyond the {rows} rows")


def _piece(rows: Dataset, start: int, stop: int | None) -> Dataset:
    return rows.select(range(start, max(start, len(rows) if stop is None else stop)))


def _joined(pieces: list[Dataset]) -> Dataset:
    return pieces[0] if len(pieces) == 1 else concatenate_datasets(pieces)
