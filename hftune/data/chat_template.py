# SPDX-License-Identifier: Apache-2.0
"""Render conversations as text, with the character spans of the assistant's turns.

The chat template renders the conversation. The text that an assistant turn adds to the rendering of
the turns before it is the span of that turn. The template needs no ``{% generation %}`` mark, but
must render earlier turns the same when later turns follow; otherwise an error names the turn.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from transformers import PreTrainedTokenizerBase

from hftune.core.errors import HftuneError

Message = dict[str, Any]
Span = tuple[int, int]
Tools = list[dict[Any, Any] | Callable[..., Any]]


class RewrittenTurnsError(HftuneError):
    """The chat template renders an earlier turn differently when others follow."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    prompt: bool = False,
    tools: Tools | None = None,
) -> str:
    """Return the conversation as the chat template renders it.

    Args:
        tokenizer: The tokenizer with the template.
        messages: ``{role, content}``, in order.
        prompt: Whether to end with the opening of an assistant turn.
        tools: JSON schemas of the functions that the template shows to the model.

    Raises:
        HftuneError: The template refuses the conversation.
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tools=tools, tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:  # the code of a template may raise anything
        raise HftuneError(f"the chat template refuses the conversation: {error}") from error
    return str(text)


def assistant_spans(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Tools | None = None,
    first: int = 1,
) -> tuple[str, list[Span]]:
    """Return the rendered conversation and the character spans of the assistant's turns.

    A span starts after the opening of the turn, which belongs to the prompt at generation, and ends
    with the end-of-turn token, so that the model learns to stop.

    Args:
        tokenizer: The tokenizer with the template.
        messages: ``{role, content}``, in order.
        tools: See :func:`render`.
        first: Turns before this index have no span. Turn 0 never has one, since no prompt comes
            before it.

    Raises:
        RewrittenTurnsError: The template rewrites earlier turns, so that spans are unknown.
    """
    text = render(tokenizer, messages, tools=tools)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or index < max(first, 1):
            continue
        opening = render(tokenizer, messages[:index], prompt=True, tools=tools)
        turn = render(tokenizer, messages[: index + 1], tools=tools)
        if not (text.startswith(turn) and turn.startswith(opening)):
            raise RewrittenTurnsError(
                f"the chat template renders turn {index + 1} differently when other turns follow",
                hint="give one row for each assistant turn, so that it stands last",
            )
        spans.append((len(opening), len(turn.rstrip())))
    return text, spans


def is_conversation(value: object) -> TypeGuard[list[Message]]:
    """Tell whether a cell is a list of ``{role, content}``.

    Example:
        >>> is_conversation([{"role": "user", "content": "Hello"}]), is_conversation("Hello")
        (True, False)
    """
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and isinstance(item.get("role"), str) for item in value)
        and all(
            isinstance(item.get("content"), str | list) or item.get("tool_calls") for item in value
        )
    )


def open_question(messages: list[Message]) -> list[Message]:
    """Return the turns before a last answer, or all turns if the last one is no answer.

    Example:
        >>> user = {"role": "user", "content": "2 + 2?"}
        >>> open_question([user, {"role": "assistant", "content": "4"}]) == [user]
        True
    """
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def before_answer(messages: list[Message]) -> list[Message]:
    """Return the turns before the first turn of the assistant.

    Example:
        >>> turns = [{"role": role, "content": ""} for role in ("system", "user", "assistant")]
        >>> [turn["role"] for turn in before_answer(turns)]
        ['system', 'user']
    """
    first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
    return messages[:first]
