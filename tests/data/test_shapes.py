# SPDX-License-Identifier: Apache-2.0
"""The columns tell the shape, and wrong cells are named with their row."""

from typing import Any

import pytest
from datasets import Dataset

from hftune.core.errors import HftuneError
from hftune.data.shapes import select_shape, shape_columns

ASKED = [{"role": "user", "content": "add"}, {"role": "assistant", "content": "3"}]


@pytest.mark.parametrize(
    ("names", "given", "expected"),
    [
        (["messages", "text"], {}, {"messages": "messages"}),
        (["conversations", "id"], {}, {"messages": "conversations"}),
        (["messages", "tools", "group"], {},
         {"messages": "messages", "tools": "tools", "group": "group"}),
        (["instruction", "input", "output", "text"], {},
         {"instruction": "instruction", "input": "input", "output": "output"}),
        (["instruction", "context", "response"], {},
         {"instruction": "instruction", "input": "context", "output": "response"}),
        (["question", "answer", "text"], {}, {"prompt": "question", "completion": "answer"}),
        (["text", "id"], {}, {"text": "text"}),
        (["messages", "summary"], {"text": "summary"}, {"text": "summary"}),
        (["messages", "q", "a"], {"instruction": "q", "output": "a"},
         {"instruction": "q", "output": "a"}),
        (["messages", "text", "page"], {"group": "page"},
         {"messages": "messages", "group": "page"}),
    ],
)  # fmt: skip
def test_shape_by_columns(
    names: list[str], given: dict[str, str], expected: dict[str, str]
) -> None:
    assert shape_columns(names, given) == expected


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (["q", "a"], {"prompt": "q", "output": "a"}, "output and prompt do not go together"),
        (["q"], {"question": "q"}, "unknown role 'question'"),
        (["q"], {"prompt": "x"}, "no column 'x'"),
        (["x", "y"], {}, r"no column for messages, .* columns: \['x', 'y'\]"),
    ],
)
def test_no_shape(names: list[str], given: dict[str, str], message: str) -> None:
    with pytest.raises(HftuneError, match=message):
        shape_columns(names, given)


def select(rows: dict[str, list[Any]], system_prompt: str | None = None) -> Dataset:
    table = Dataset.from_dict(rows)
    return select_shape(table, shape_columns(table.column_names, {}), system_prompt)[0]


def test_all_kinds_of_conversations_become_the_same_messages() -> None:
    shapes: list[dict[str, list[Any]]] = [
        {"messages": [ASKED]},
        {"conversations": [[{"from": "human", "value": "add"}, {"from": "gpt", "value": "3"}]]},
        {"instruction": ["add"], "input": [""], "output": ["3"]},
        {"prompt": [ASKED[:1]], "completion": [ASKED[1:]]},
    ]
    system = {"role": "system", "content": "be brief"}
    for rows in shapes:
        assert select(rows)["messages"][:] == [ASKED]
        assert select(rows, "be brief")["messages"][:] == [[system, *ASKED]]


def test_the_prompt_of_a_pair_is_context() -> None:
    rows = {"prompt": [[*ASKED, ASKED[0]]], "completion": [ASKED[1:]]}
    assert select(rows)["context_turns"][:] == [3]
    assert select(rows, "be brief")["context_turns"][:] == [4]


def test_tools_stay_as_they_were() -> None:
    tools = [[{"name": "a", "parameters": {"x": {}}}], [{"name": "b", "parameters": {"y": {}}}]]
    rows = select({"messages": [ASKED, ASKED], "tools": tools})
    assert rows["tools"][1] == '[{"name": "b", "parameters": {"y": {}}}]'


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"conversations": [[{"from": "human", "value": "x"}], [{"from": "me", "value": "x"}]]},
         "column 'conversations': row 2 has: turn 1 has an unknown `from`, 'me'"),
        ({"instruction": ["a", None], "output": ["b", "c"]},
         "column 'instruction': row 2 has: instruction is not text but None"),
        ({"instruction": ["a", "b"], "output": ["b", None]},
         "column 'output': row 2 is not text but None"),
        ({"prompt": [ASKED[:1], None], "completion": [ASKED[1:], ASKED[1:]]},
         "column 'prompt': row 2 has: prompt is no list of messages"),
        ({"text": ["a", None]}, "column 'text': row 2 is not text but None"),
        ({"text": [1.5, 3.5]}, "column 'text': row 1 is not text but 1.5"),
        ({"prompt": ["a"], "completion": ["b"], "tools": ["[]"]},
         "tools: rows of prompt and completion as texts are no conversations"),
    ],
)  # fmt: skip
def test_wrong_cells_are_named(rows: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(HftuneError, match=message):
        select(rows)


def test_system_prompt_needs_conversations() -> None:
    with pytest.raises(HftuneError, match="system_prompt: rows of plain text are no conversations"):
        select({"text": ["a"]}, "be brief")


def test_messages_that_are_fine_are_not_copied() -> None:
    rows = Dataset.from_dict({"messages": [ASKED] * 5})
    selected, _ = select_shape(rows, {"messages": "messages"})
    ours, theirs = (table.data.column("messages").chunk(0) for table in (selected, rows))
    assert list(map(str, ours.buffers())) == list(map(str, theirs.buffers()))
    assert selected["messages"][:] == rows["messages"][:]


def test_rows_are_numbered_through_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hftune.data.arrow.BATCH", 3)
    turns = [{"from": "human", "value": "add"}, {"from": "gpt", "value": "3"}]
    wrong = [{"from": "nobody", "value": "add"}]
    assert select({"conversations": [turns] * 8})["messages"][:] == [ASKED] * 8
    with pytest.raises(HftuneError, match="row 8 has: turn 1 has an unknown"):
        select({"conversations": [*[turns] * 7, wrong]})
