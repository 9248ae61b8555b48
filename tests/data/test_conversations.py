# SPDX-License-Identifier: Apache-2.0
"""Each shape becomes the messages that a reader would write by hand."""

from collections.abc import Callable
from typing import Any

import pytest

from hftune.data.conversations import (
    alpaca_to_messages,
    pair_to_messages,
    to_messages,
    tools_of,
    with_system_prompt,
    without_nulls,
)

ASKED = [{"role": "user", "content": "add"}, {"role": "assistant", "content": "3"}]
TOOL = {"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}}}


def test_sharegpt() -> None:
    speakers = ["system", "human", "gpt", "tool", "chatgpt"]
    turns = [{"from": name, "value": f"said {i}", "role": None} for i, name in enumerate(speakers)]
    roles = ["system", "user", "assistant", "tool", "assistant"]
    expected = [{"role": role, "content": f"said {i}"} for i, role in enumerate(roles)]
    assert to_messages(turns) == expected
    assert to_messages(ASKED) == ASKED


def test_alpaca() -> None:
    assert alpaca_to_messages("add", "", "3") == alpaca_to_messages("add", None, "3") == ASKED
    with_input = alpaca_to_messages("add", "1, 2", "3")
    assert with_input == [{"role": "user", "content": "add\n\n1, 2"}, ASKED[1]]
    assert alpaca_to_messages("add") == ASKED[:1]


def test_pair() -> None:
    assert pair_to_messages(ASKED[:1], ASKED[1:]) == ASKED
    assert pair_to_messages(ASKED[:1]) == ASKED[:1]


def test_system_prompt_only_where_none_is() -> None:
    system = {"role": "system", "content": "be brief"}
    assert with_system_prompt(ASKED, "be brief") == [system, *ASKED]
    assert with_system_prompt([system, *ASKED], "be long") == [system, *ASKED]
    assert with_system_prompt(ASKED, None) == ASKED


def test_tools() -> None:
    text = '[{"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}}}]'
    filled = {**TOOL, "strict": None}
    assert tools_of(text) == tools_of([filled]) == [TOOL]
    assert tools_of("") is tools_of(None) is tools_of([]) is None


def test_nulls_of_tables_go_and_values_stay() -> None:
    cell = [{"a": None, "b": [{"c": None, "d": 0}], "e": "", "f": False}]
    assert without_nulls(cell) == [{"b": [{"d": 0}], "e": "", "f": False}]


@pytest.mark.parametrize(
    ("convert", "cells", "message"),
    [
        (to_messages, ["text"], "no list of messages"),
        (to_messages, [[]], "no list of messages"),
        (to_messages, [[{"from": "narrator", "value": "x"}]],
         "turn 1 has an unknown `from`, 'narrator'; known: human"),
        (to_messages, [[{"from": "human", "value": "x"}, {"from": "gpt", "value": None}]],
         "turn 2 has no text as `value` but None"),
        (to_messages, [[{"from": "human", "value": "x"}, "y"]], "turn 2 has an unknown `from`"),
        (alpaca_to_messages, ["add", 3, "3"], "input is not text but 3"),
        (alpaca_to_messages, [None, "x"], "instruction is not text but None"),
        (alpaca_to_messages, [" ", "x"], "the instruction is empty"),
        (pair_to_messages, [ASKED[:1], "3"], "completion is no list of messages"),
        (tools_of, ["[{"], "tools are broken json"),
        (tools_of, [["sum"]], "tools are no list of functions"),
    ],
)  # fmt: skip
def test_wrong_cells(convert: Callable[..., Any], cells: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(*cells)
