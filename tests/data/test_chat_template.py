# SPDX-License-Identifier: Apache-2.0
"""Spans hold what the assistant writes, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from hftune.core.errors import HftuneError
from hftune.data.chat_template import assistant_spans, is_conversation, render

CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "one, two 😀"},
    {"role": "user", "content": "<|assistant|>?"},
    {"role": "assistant", "content": " spaced "},
]
REWRITES = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{{ m['content'] if loop.last or m['role'] != 'assistant' else '(cut)' }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
REFUSES = (
    "{% if messages[0]['role'] == 'assistant' %}"
    "{{ raise_exception('the user speaks first') }}{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_decoder: Path) -> Any:
    """A fresh tokenizer, whose template a test may change."""
    return AutoTokenizer.from_pretrained(tiny_decoder)


def sliced(tokenizer: Any, messages: list[dict[str, str]]) -> list[str]:
    text, spans = assistant_spans(tokenizer, messages)
    return [text[start:stop] for start, stop in spans]


@pytest.mark.parametrize("turns", [3, 4, 5])
def test_span_is_content_and_end_token(tokenizer: Any, turns: int) -> None:
    expected = [m["content"] + "<|end|>" for m in CHAT[:turns] if m["role"] == "assistant"]
    assert sliced(tokenizer, CHAT[:turns]) == expected


def test_text_is_the_whole_conversation(tokenizer: Any) -> None:
    text, spans = assistant_spans(tokenizer, CHAT)
    assert text == tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert text[: spans[0][0]].endswith("<|assistant|>")


def test_prompt_ends_with_the_opening(tokenizer: Any) -> None:
    expected = "<|user|>one?<|end|>\n<|assistant|>"
    assert render(tokenizer, CHAT[1:2], prompt=True) == expected
    assert render(tokenizer, CHAT[1:2]) == expected.removesuffix("<|assistant|>")


def test_no_assistant(tokenizer: Any) -> None:
    assert sliced(tokenizer, CHAT[:2]) == []


def test_greeting_before_the_first_question(tokenizer: Any) -> None:
    chat = [{"role": "assistant", "content": "hello"}, *CHAT[1:3]]
    assert sliced(tokenizer, chat)[-1] == "one, two 😀<|end|>"


def test_two_assistant_turns_in_a_row(tokenizer: Any) -> None:
    said = [{"role": "assistant", "content": word} for word in ("one", "two")]
    assert sliced(tokenizer, [CHAT[1], *said]) == ["one<|end|>", "two<|end|>"]


def test_template_that_rewrites_earlier_turns(tokenizer: Any) -> None:
    tokenizer.chat_template = REWRITES
    assert sliced(tokenizer, CHAT[:3]) == ["one, two 😀<|end|>"]
    with pytest.raises(
        HftuneError, match="renders turn 3 differently when other turns follow\ngive one row for"
    ):
        assistant_spans(tokenizer, CHAT)


def test_refusal_of_the_template_is_wrapped(tokenizer: Any) -> None:
    tokenizer.chat_template = REFUSES
    with pytest.raises(
        HftuneError, match=r"the chat template refuses the conversation: the user speaks first"
    ):
        render(tokenizer, CHAT[2:])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (CHAT, True),
        ([{"role": "user", "content": None, "name": "x"}], False),
        ([{"role": "assistant", "content": None, "tool_calls": [{"name": "x"}]}], True),
        ([], False),
        (None, False),
        ("text", False),
        (["text"], False),
        ([{"role": "user"}], False),
        ({"role": "user", "content": "x"}, False),
    ],
)
def test_is_conversation(value: Any, expected: bool) -> None:
    assert is_conversation(value) is expected
