# SPDX-License-Identifier: Apache-2.0
"""The shapes of rows that a language model trains on, and each shape in the task's own columns.

Conversations of every kind become ``messages``, beside them ``tools`` (JSON text, empty for none)
and ``context_turns`` (how many first turns are never trained) where the source has them. The other
shapes stay ``prompt`` and ``completion``, or ``text``.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset

from hftune.core.errors import HftuneError
from hftune.data.columns import GROUP, Role, find_columns
from hftune.data.conversations import (
    alpaca_to_messages,
    is_sharegpt,
    pair_to_messages,
    to_messages,
    tools_of,
    with_system_prompt,
)


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
    """Return rows in the task's own columns, and what they were, in words.

    Args:
        rows: As the source has them.
        columns: Role to column name.
        system_prompt: Put before conversations that have no system turn.

    Raises:
        HftuneError: A cell is not what its shape asks; the message names column and row.
    """
    shape = shape_of(columns, rows.column_names)
    cells = {role: rows[column][:] for role, column in columns.items()}
    group = {"group": cells["group"]} if "group" in cells else {}
    said = shape
    if shape == "messages":
        conversations = _each(columns["messages"], to_messages, cells["messages"])
        said = "sharegpt" if any(map(is_sharegpt, cells["messages"])) else shape
    elif shape == "alpaca":
        none = [None] * len(rows)
        parts = (cells.get(role, none) for role in ("instruction", "input", "output"))
        conversations = _each(columns["instruction"], alpaca_to_messages, *parts)
        if "output" in cells:
            texts(cells["output"], columns["output"])
    elif shape == "pairs" and any(isinstance(prompt, list) for prompt in cells["prompt"]):
        pair = [cells[role] for role in ("prompt", "completion") if role in cells]
        conversations = _each(columns["prompt"], pair_to_messages, *pair)
        group["context_turns"] = [len(prompt) for prompt in cells["prompt"]]
        said = "prompt and completion, both messages"
    else:
        if system_prompt is not None or "tools" in columns:
            key = "data.system_prompt" if system_prompt is not None else "data.columns: tools"
            kind = "plain text" if shape == "text" else "prompt and completion as texts"
            raise HftuneError(f"{key}: rows of {kind} are no conversations")
        plain = {role: texts(cells[role], columns[role]) for role in cells if role != "group"}
        return Dataset.from_dict({**plain, **group}), "plain text" if shape == "text" else said
    if system_prompt is not None and "context_turns" in group:
        added = [1 - any(turn["role"] == "system" for turn in turns) for turns in conversations]
        group["context_turns"] = [
            number + more for number, more in zip(group["context_turns"], added, strict=True)
        ]
    conversations = [with_system_prompt(turns, system_prompt) for turns in conversations]
    if "tools" in cells:
        tools = _each(columns["tools"], tools_of, cells["tools"])
        group["tools"] = ["" if tool is None else json.dumps(tool) for tool in tools]
    try:
        return Dataset.from_dict({"messages": conversations, **group}), said
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise HftuneError(
            f"column {columns.get('messages', columns.get('prompt'))!r}: the messages are not "
            f"alike: {error}",
            hint="a field of a message must have one type in all rows",
        ) from error


def texts(values: list[Any], column: str) -> list[str]:
    """Return the cells of a column that must be text, and not all empty.

    Raises:
        HftuneError: They are not.
    """
    wrong = [i for i, value in enumerate(values) if not isinstance(value, str)]
    if wrong:
        raise HftuneError(
            f"column {column!r}: row {wrong[0] + 1} is not text but {values[wrong[0]]!r:.40}"
        )
    if not any(value.strip() for value in values):
        raise NothingToTrainError(f"column {column!r}: all {len(values)} texts are empty")
    return values


def _each(column: str, convert: Callable[..., Any], *cells: Sequence[Any]) -> list[Any]:
    def converted() -> Iterator[Any]:
        for number, row in enumerate(zip(*cells, strict=True), start=1):
            try:
                yield convert(*row)
            except ValueError as error:
                words = f"is {error}" if str(error).startswith("no ") else f"has: {error}"
                raise HftuneError(f"column {column!r}: row {number} {words}") from None

    return list(converted())


def _hint() -> str:
    known = (" and ".join(role.name for role in roles) for roles in SHAPES.values())
    return f"rows are of one shape: {'; or '.join(known)}"
