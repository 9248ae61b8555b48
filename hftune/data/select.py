# SPDX-License-Identifier: Apache-2.0
"""Columns picked and checked in Arrow, so that a million rows take no Python list."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from hftune.core.errors import HftuneError
from hftune.data.arrow import codes, column_array, column_batches

SHOWN_ROWS = 5


def text_column(rows: Dataset, name: str, *, all_empty: bool = False) -> pa.ChunkedArray:
    """Return a column of texts; a missing text is an empty one.

    Args:
        rows: Have the column.
        name: Its name.
        all_empty: Whether all may be empty, as in a few rows of a stream.

    Raises:
        HftuneError: A row is not text, or all are empty.
    """
    values = column_array(rows, name)
    if pa.types.is_null(values.type):
        values = values.cast(pa.string())
    if not is_text(values.type):
        index = np.flatnonzero(pc.is_valid(values).to_numpy())[0]
        raise HftuneError(
            f"column {name!r}: row {index + 1} is not text but {values[int(index)].as_py()!r:.40}"
        )
    if values.null_count:
        values = pc.fill_null(values, "")
    if not all_empty and all_blank(values):
        raise HftuneError(f"column {name!r}: all {len(values)} texts are empty")
    return values


def label_column(rows: Dataset, name: str) -> pa.ChunkedArray:
    """Return a column of labels as texts: names, or whole numbers written out.

    Raises:
        HftuneError: A row has no label, or labels are neither text nor whole numbers.
    """
    values, feature = column_array(rows, name), rows.features[name]
    if isinstance(feature, ClassLabel):
        known = pc.if_else(pc.greater_equal(values, 0), values, None)
        values = pc.take(pa.chunked_array([pa.array(feature.names, pa.string())]), known)
    missing = pc.is_null(values, nan_is_null=True)
    if is_text(values.type):
        missing = pc.or_(missing, pc.fill_null(pc.equal(values, ""), fill_value=True))
    if len(places := np.flatnonzero(missing.to_numpy()) + 1):
        more = f" and {len(places) - SHOWN_ROWS} more" if len(places) > SHOWN_ROWS else ""
        shown = ", ".join(map(str, places[:SHOWN_ROWS]))
        raise HftuneError(
            f"column {name!r}: no label in row {shown}{more}",
            hint="leave these rows out, or name a teacher who has labels for them: distillation",
        )
    if pa.types.is_nested(values.type):
        raise HftuneError(_wrong_label(name, {type(values[0].as_py())}))
    numbers, distinct = codes(values)
    kinds = {type(value) for value in distinct}
    if kinds == {float} and all(float(str(value)).is_integer() for value in distinct):
        # pandas turns integers beside a gap into floats
        distinct = [int(float(str(value))) for value in distinct]
    elif not kinds <= {str, int, bool}:
        raise HftuneError(_wrong_label(name, kinds))
    if kinds == {str}:
        return values
    names = pa.array([str(value) for value in distinct], pa.string())
    return pa.chunked_array([names.take(pa.array(numbers))])


def distinct_values(rows: Dataset, name: str) -> list[str]:
    """Return the values of a column, each once, in the order of their first rows."""
    values: list[str] = pc.unique(column_array(rows, name)).to_pylist()
    return values


def blank_rows(rows: Dataset, columns: Iterable[str]) -> int:
    """Return how many rows have a text without a visible character in one of the columns."""
    found = 0
    for batches in zip(*(column_batches(rows, name) for name in columns), strict=True):
        blank = [_is_blank(batch).to_numpy(zero_copy_only=False) for batch in batches]
        found += int(np.logical_or.reduce(blank).sum())
    return found


def all_blank(texts: pa.ChunkedArray) -> bool:
    """Tell whether no text has a visible character."""
    return all(pc.all(_is_blank(chunk)).as_py() for chunk in texts.chunks)


def _is_blank(texts: pa.Array) -> pa.BooleanArray:
    return pc.equal(pc.utf8_trim_whitespace(texts), "")


def is_text(kind: pa.DataType) -> bool:
    """Tell whether cells of a type are texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _wrong_label(name: str, kinds: set[type]) -> str:
    found = ", ".join(sorted(kind.__name__ for kind in kinds))
    return f"column {name!r}: a label is text or a whole number, not {found}"
