# SPDX-License-Identifier: Apache-2.0
"""Convert the usual shapes of instruction data to messages: alpaca, sharegpt, TRL's pairs of lists.

A function raises ``ValueError`` for a wrong cell; the caller, who knows column and row, adds them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from hftune.data.chat_template import Message, is_conversation

#: Speaker in sharegpt -> role. Source: the fields of published ShareGPT-like datasets.
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


def to_messages(conversation: object) -> list[Message]:
    """Return a cell as messages; its turns are ``{role, content}`` or ``{from, value}``.

    Raises:
        ValueError: The cell has another shape.

    Example:
        >>> to_messages([{"from": "human", "value": "Hello"}])
        [{'role': 'user', 'content': 'Hello'}]
    """
    if is_sharegpt(conversation):
        return sharegpt_to_messages(conversation)
    if not is_conversation(conversation):
        raise ValueError("no list of messages with role and content")
    return conversation


def is_sharegpt(conversation: object) -> TypeGuard[list[object]]:
    """Tell whether the first turn of a cell is ``{from, value}``.

    Example:
        >>> is_sharegpt([{"from": "gpt", "value": "Hello"}])
        True
    """
    first = conversation[0] if isinstance(conversation, list) and conversation else None
    return isinstance(first, dict) and first.get("role") is None and "from" in first


def sharegpt_to_messages(turns: Sequence[object]) -> list[Message]:
    """Return ``{from, value}`` turns as messages, without the other fields of a turn.

    Raises:
        ValueError: A turn has an unknown speaker or no text.

    Example:
        >>> sharegpt_to_messages([{"from": "gpt", "value": "4", "weight": 1}])
        [{'role': 'assistant', 'content': '4'}]
    """
    messages = []
    for number, turn in enumerate(turns, start=1):
        fields = turn if isinstance(turn, dict) else {}
        speaker, text = fields.get("from"), fields.get("value")
        if speaker not in SHAREGPT_ROLES:
            known = ", ".join(SHAREGPT_ROLES)
            raise ValueError(f"turn {number} has an unknown `from`, {speaker!r}; known: {known}")
        if not isinstance(text, str):
            raise ValueError(f"turn {number} has no text as `value` but {text!r:.40}")
        messages.append({"role": SHAREGPT_ROLES[speaker], "content": text})
    return messages


def alpaca_to_messages(instruction: Any, input: Any = None, output: Any = None) -> list[Message]:
    r"""Return an alpaca row as a question and, if the row has one, its answer.

    Args:
        instruction: The instruction, a text.
        input: Material for the instruction, which it follows; may be empty or None.
        output: The answer; None if the model shall predict it.

    Raises:
        ValueError: A cell is not text, or the instruction is empty.

    Example:
        >>> alpaca_to_messages("Translate to French.", "cat", "chat")[0]["content"]
        'Translate to French.\n\ncat'
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

    Example:
        >>> question, answer = ({"role": r, "content": "..."} for r in ("user", "assistant"))
        >>> pair_to_messages([question], [answer]) == [question, answer]
        True
    """
    for name, value in {"prompt": prompt, "completion": completion}.items():
        if not is_conversation(value) and (value is not None or name == "prompt"):
            raise ValueError(f"{name} is no list of messages with role and content")
    return [*prompt, *(completion or [])]


def with_system_prompt(messages: list[Message], system_prompt: str | None) -> list[Message]:
    """Return the conversation with a system turn in front, unless it has one.

    Example:
        >>> with_system_prompt([{"role": "user", "content": "Hello"}], "Be brief.")[0]
        {'role': 'system', 'content': 'Be brief.'}
    """
    if system_prompt is None or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]


def tools_of(cell: Any) -> list[dict[str, Any]] | None:
    """Return the tools that a conversation may call, as the chat template takes them.

    Args:
        cell: A list of JSON schemas of functions, the same as JSON text, or nothing.

    Raises:
        ValueError: The cell is none of these.

    Example:
        >>> tools_of('[{"name": "now", "parameters": null}]')
        [{'name': 'now'}]
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
    """Return a cell without keys whose value is None, which tables fill in.

    Example:
        >>> without_nulls([{"name": "now", "strict": None}])
        [{'name': 'now'}]
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
