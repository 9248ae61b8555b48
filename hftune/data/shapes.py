# SPDX-License-Identifier: Apache-2.0
"""The shapes of rows that a language model trains on, and each shape in the task's own columns.

Conversations of every kind become ``messages``, beside them ``tools`` (JSON text, empty for none)
and ``context_turns`` (how many first turns are never trained) where the source has them. The other
shapes stay ``prompt`` and ``completion``, or ``text``.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import is_
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hftune.core.errors import HftuneError
from hftune.data.arrow import MISMATCH, as_dataset, column_array, column_batches, joined
from hftune.data.chat_template import Message
from hftune.data.columns import GROUP, Role, find_columns
from hftune.data.conversations import (
    alpaca_to_messages,
    is_sharegpt,
    pair_to_messages,
    to_messages,
    tools_of,
    with_system_prompt,
)
from hftune.data.select import all_blank, is_text


class NothingToTrainError(HftuneError):
    """Rows that are well-formed and hold nothing to learn from."""


TOOLS = Role("tools", (), required=False)

#: Shape -> its roles, the telling one first. A table is of the first shape whose role is found.
SHAPES: dict[str, tuple[Role, ...]] = {
    "messages": (Role("messages", ("conversations", "conversation"), required=False), TOOLS),
    "alpaca": (
        Role("instruction", (), required=False),
        Role("input", ("context",), required=False),
        Role("output", ("response",), required=False),
    ),
    "pairs": (
        Role("prompt", ("question",), required=False),
        Role("completion", ("answer", "response"), required=False),
        TOOLS,
    ),
    "text": (Role("text", (), required=False),),
}
#: Shape of conversations -> what makes messages of its cells, and their roles.
CONVERSATIONS: dict[str, tuple[Callable[..., list[Message]], tuple[str, ...]]] = {
    "messages": (to_messages, ("messages",)),
    "alpaca": (alpaca_to_messages, ("instruction", "input", "output")),
    "pairs": (pair_to_messages, ("prompt", "completion")),
}
ROLES = (*dict.fromkeys(role for roles in SHAPES.values() for role in roles), GROUP)


def shape_columns(names: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Return role -> column of one shape: the one that the user's columns tell, or the first found.

    Raises:
        HftuneError: The named columns are of no one shape, or no shape is found.
    """
    find_columns(names, [Role(role.name, (), required=False) for role in ROLES], given)
    named = given.keys() - {GROUP.name}
    fitting = [roles for roles in SHAPES.values() if named <= {role.name for role in roles}]
    if not fitting:
        raise HftuneError(
            f"data.columns: {' and '.join(sorted(named))} do not go together", hint=_hint()
        )
    for roles in fitting:
        found = find_columns(names, (*roles, GROUP), given)
        if roles[0].name in found:
            return found
    raise HftuneError(
        f"no column for messages, nor for prompt and completion, instruction and output, or text; "
        f"columns: {list(names)}",
        hint="say which: data: {columns: {prompt: ..., completion: ...}}",
    )


def shape_of(columns: Mapping[str, str], names: Sequence[str]) -> str:
    """Return the shape that the roles in ``columns`` tell.

    Raises:
        HftuneError: There is none; the message shows the ``names`` of all columns.
    """
    for shape, roles in SHAPES.items():
        if roles[0].name in columns:
            return shape
    raise HftuneError(
        f"no column for messages, nor for prompt and completion; columns: {list(names)}",
        hint=_hint(),
    )


def select_shape(
    rows: Dataset, columns: Mapping[str, str], system_prompt: str | None = None
) -> tuple[Dataset, str]:
    """Return rows in the task's own columns, and a description of their former shape.

    Args:
        rows: As the source has them.
        columns: Role to column name.
        system_prompt: Put before conversations that have no system turn.

    Raises:
        HftuneError: A cell is not what its shape asks; the message names column and row.
    """
    shape = shape_of(columns, rows.column_names)
    said = shape
    if shape == "pairs" and pa.types.is_nested(rows.data.schema.field(columns["prompt"]).type):
        said = "prompt and completion, both messages"
    elif shape in ("pairs", "text"):
        if system_prompt is not None or "tools" in columns:
            key = "data.system_prompt" if system_prompt is not None else "data.columns: tools"
            kind = "plain text" if shape == "text" else "prompt and completion as texts"
            raise HftuneError(f"{key}: rows of {kind} are no conversations")
        roles = [role for role in columns if role != "group"]
        plain = {role: texts(rows, columns[role]) for role in roles} | _group(rows, columns)
        return as_dataset(plain), "plain text" if shape == "text" else said
    if "output" in columns:
        texts(rows, columns["output"])
    column = columns.get("messages", columns.get("prompt"))
    tables = []
    for start, arrays in _batches(rows, columns):
        cells = {role: array.to_pylist() for role, array in arrays.items()}
        if shape == "messages" and any(map(is_sharegpt, cells["messages"])):
            said = "sharegpt"
        made: dict[str, Any] = _conversations(shape, cells, columns, start, system_prompt)
        if shape == "messages" and all(map(is_, made["messages"], cells["messages"])):
            made["messages"] = arrays["messages"]  # nothing to copy: they may lie on the disk
        try:
            tables.append(pa.table(made))
        except MISMATCH as error:
            raise _not_alike(column, error) from error
    try:
        table = joined(tables)
    except MISMATCH as error:
        raise _not_alike(column, error) from error
    return as_dataset({n: table[n] for n in table.column_names} | _group(rows, columns)), said


def texts(rows: Dataset, column: str) -> pa.ChunkedArray:
    """Return a column that must be text in every row, and not all empty.

    Raises:
        HftuneError: It is not.
    """
    values = column_array(rows, column)
    if values.null_count or not is_text(values.type):
        place = pc.index(pc.is_null(values), True).as_py() if is_text(values.type) else 0
        raise HftuneError(
            f"column {column!r}: row {place + 1} is not text but {values[place].as_py()!r:.40}"
        )
    if all_blank(values):
        raise NothingToTrainError(f"column {column!r}: all {len(values)} texts are empty")
    return values


def _conversations(
    shape: str,
    cells: Mapping[str, list[Any]],
    columns: Mapping[str, str],
    start: int,
    system_prompt: str | None,
) -> dict[str, list[Any]]:
    """Return rows of any conversation format in the task's columns; the first is row ``start``."""
    convert, parts = CONVERSATIONS[shape]
    none = [None] * len(cells[parts[0]])
    given = [cells.get(role, none) for role in parts]
    conversations = _each(columns[parts[0]], start, convert, *given)
    selected: dict[str, list[Any]] = {
        "messages": [with_system_prompt(turns, system_prompt) for turns in conversations]
    }
    if shape == "pairs":
        selected["context_turns"] = [
            len(prompt) + len(after) - len(before)
            for prompt, before, after in zip(
                cells["prompt"], conversations, selected["messages"], strict=True
            )
        ]
    if "tools" in cells:
        tools = _each(columns["tools"], start, tools_of, cells["tools"])
        selected["tools"] = ["" if tool is None else json.dumps(tool) for tool in tools]
    return selected


def _batches(
    rows: Dataset, columns: Mapping[str, str]
) -> Iterator[tuple[int, dict[str, pa.Array]]]:
    """Yield the number of the first row of each batch, and its columns by role."""
    roles = [role for role in columns if role != "group"]
    start = 1
    for arrays in zip(*(column_batches(rows, columns[role]) for role in roles), strict=True):
        yield start, dict(zip(roles, arrays, strict=True))
        start += len(arrays[0])


def _group(rows: Dataset, columns: Mapping[str, str]) -> dict[str, pa.ChunkedArray]:
    return {"group": column_array(rows, columns["group"])} if "group" in columns else {}


def _not_alike(column: str | None, error: Exception) -> HftuneError:
    return HftuneError(
        f"column {column!r}: the messages are not alike: {error}",
        hint="a field of a message must have one type in all rows",
    )


def _each(column: str, start: int, convert: Callable[..., Any], *cells: Sequence[Any]) -> list[Any]:
    def converted() -> Iterator[Any]:
        for number, row in enumerate(zip(*cells, strict=True), start):
            try:
                yield convert(*row)
            except ValueError as error:
                words = f"is {error}" if str(error).startswith("no ") else f"has: {error}"
                raise HftuneError(f"column {column!r}: row {number} {words}") from None

    return list(converted())


def _hint() -> str:
    known = (" and ".join(role.name for role in roles) for roles in SHAPES.values())
    return f"rows are of one shape: {'; or '.join(known)}"
