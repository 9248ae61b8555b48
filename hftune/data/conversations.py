# SPDX-License-Identifier: Apache-2.0
"""The shapes in which instruction data come, as messages: alpaca, sharegpt, TRL's pairs of lists.

A function that meets a wrong cell raises ``ValueError`` with what is wrong; who knows the column
and the row adds them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hftune.data.chat_template import Message, is_conversation

#: Who speaks in sharegpt -> role. Source: the fields of the published ShareGPT-like data sets.
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


def to_messages(conversation: Any) -> list[Message]:
    """Return a cell as messages, whether its turns are ``{role, content}`` or ``{from, value}``.

    Raises:
        ValueError: It is neither.
    """
    if is_sharegpt(conversation):
        return sharegpt_to_messages(conversation)
    if not is_conversation(conversation):
        raise ValueError("no list of messages with role and content")
    return conversation


def is_sharegpt(conversation: Any) -> bool:
    """Tell whether a cell's first turn is ``{from, value}``."""
    first = conversation[0] if isinstance(conversation, list) and conversation else None
    return isinstance(first, dict) and first.get("role") is None and "from" in first


def sharegpt_to_messages(turns: Sequence[Any]) -> list[Message]:
    """Return ``{from, value}`` turns as messages; a turn's other fields are left out.

    Raises:
        ValueError: A turn has an unknown speaker or no text.
    """
    messages = []
    for number, turn in enumerate(turns, start=1):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if speaker not in SHAREGPT_ROLES:
            known = ", ".join(SHAREGPT_ROLES)
            raise ValueError(f"turn {number} has an unknown `from`, {speaker!r}; known: {known}")
        if not isinstance(turn.get("value"), str):
            raise ValueError(f"turn {number} has no text as `value` but {turn.get('value')!r:.40}")
        messages.append({"role": SHAREGPT_ROLES[speaker], "content": turn["value"]})
    return messages


def alpaca_to_messages(instruction: Any, input: Any = None, output: Any = None) -> list[Message]:
    """Return an alpaca row as a question and, where there is one, its answer.

    Args:
        instruction: What to do.
        input: What to do it with, set below the instruction; may be empty or None.
        output: The answer; None where it is to be predicted.

    Raises:
        ValueError: A cell is not text, or the instruction is empty.
    """
    for name, value in {"instruction": instruction, "input": input, "output": output}.items():
        if not isinstance(value, str) and (value is not None or name == "instruction"):
            raise ValueError(f"{name} is not text but {value!r:.40}")
    if not instruction.strip():
        raise ValueError("the instruction is empty")
    question = f"{instruction}\n\n{input}" if input else instruction
    answer = [] if output is None else [{"role": "assistant", "content": output}]
    return [{"role": "user", "content": question}, *answer]


def pair_to_messages(prompt: Any, completion: Any = None) -> list[Message]:
    """Return a prompt and a completion that are both lists of messages as one conversation.

    Raises:
        ValueError: One of them is no list of messages.
    """
    for name, value in {"prompt": prompt, "completion": completion}.items():
        if not is_conversation(value) and (value is not None or name == "prompt"):
            raise ValueError(f"{name} is no list of messages with role and content")
    return [*prompt, *(completion or [])]


def with_system_prompt(messages: list[Message], system_prompt: str | None) -> list[Message]:
    """Return the conversation with a system turn in front, unless it has one."""
    if system_prompt is None or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]


def tools_of(cell: Any) -> list[dict[str, Any]] | None:
    """Return the tools that a conversation may call, as the chat template takes them.

    Args:
        cell: A list of JSON schemas of functions, the same as JSON text, or nothing.

    Raises:
        ValueError: It is something else.
    """
    if cell is None or cell in ("", []):
        return None
    tools = cell
    if isinstance(cell, str):
        try:
            tools = json.loads(cell)
        except ValueError as error:
            raise ValueError(f"tools are broken json: {error}") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"tools are no list of functions but {tools!r:.40}")
    return [without_nulls(tool) for tool in tools] or None


def without_nulls(value: Any) -> Any:
    """Return a cell without the keys that a table fills in: those whose value is None."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
