# SPDX-License-Identifier: Apache-2.0
"""Tasks and columns from rows."""

from typing import Any

import pytest
from datasets import Dataset

from hftune import HftuneError
from hftune.tasks import TASKS
from hftune.tasks.forms import form_of
from hftune.tasks.guess import BY_CONTENTS, guess_tasks
from hftune.tasks.text_classification import TextClassification

TEXTS = [f"order number {i} came late" for i in range(40)]
TEAMS = ["billing", "returns"] * 20
CHATS = [
    [{"role": "user", "content": text}, {"role": "assistant", "content": "sorry"}] for text in TEXTS
]

SHAREGPT = [[{"from": "human", "value": text}, {"from": "gpt", "value": "ok"}] for text in TEXTS]


def guessed(columns: dict[str, list[Any]], **options: Any) -> tuple[str, dict[str, str]]:
    best = guess_tasks(Dataset.from_dict(columns), **options)[0]
    return best.task, best.columns


@pytest.mark.parametrize(
    ("columns", "task", "roles"),
    [
        ({"text": TEXTS, "label": TEAMS}, "text-classification",
         {"text": "text", "label": "label"}),
        ({"id": list(range(40)), "Message": TEXTS, "team": TEAMS}, "text-classification",
         {"text": "Message", "label": "team"}),
        ({"a": TEXTS, "b": TEAMS}, "text-classification", {"text": "a", "label": "b"}),
        ({"short": TEXTS, "long": [text * 3 for text in TEXTS], "label": TEAMS},
         "text-classification", {"text": "long", "label": "label"}),
        ({"premise": TEXTS, "hypothesis": TEXTS, "label": TEAMS, "group": TEAMS},
         "text-classification",
         {"text": "premise", "label": "label", "text_pair": "hypothesis", "group": "group"}),
        ({"messages": CHATS}, "text-generation", {"messages": "messages"}),
        ({"turns": CHATS, "id": list(range(40))}, "text-generation", {"messages": "turns"}),
        ({"prompt": TEXTS, "completion": TEXTS}, "text-generation",
         {"prompt": "prompt", "completion": "completion"}),
        ({"id": TEXTS, "conversations": SHAREGPT}, "text-generation",
         {"messages": "conversations"}),
        ({"instruction": TEXTS, "input": TEXTS, "output": TEXTS}, "text-generation",
         {"instruction": "instruction", "input": "input", "output": "output"}),
        ({"messages": CHATS, "text": TEXTS, "context": TEXTS}, "text-generation",
         {"messages": "messages"}),
        ({"passage": TEXTS}, "text-generation", {"text": "passage"}),
        ({"source": TEXTS, "target": TEXTS}, "text2text-generation",
         {"text": "source", "target": "target"}),
        ({"question": TEXTS, "answer": TEAMS}, "text-generation",
         {"prompt": "question", "completion": "answer"}),
    ],
)  # fmt: skip
def test_guesses(columns: dict[str, list[Any]], task: str, roles: dict[str, str]) -> None:
    assert guessed(columns) == (task, roles)


def test_what_the_user_names_wins() -> None:
    columns = {"text": TEXTS, "other": TEXTS, "label": TEAMS, "team": TEAMS[::-1]}
    given = {"text": "other", "label": "team"}
    assert guessed(columns, given=given) == ("text-classification", given)
    both = {"messages": CHATS, "text": TEXTS, "label": TEAMS}
    assert guessed(both)[0] == "text-generation"
    assert guessed(both, task="text-classification")[0] == "text-classification"
    plain = {"text": TEXTS, "label": TEAMS}
    assert guessed(plain, task="text-generation") == ("text-generation", {"text": "text"})


def test_names_count_for_more_than_contents() -> None:
    rows = Dataset.from_dict({"messages": CHATS, "some": TEXTS, "kind": TEAMS})
    assert [guess.task for guess in guess_tasks(rows)] == ["text-generation", "text-classification"]


@pytest.mark.parametrize(
    ("columns", "options", "says"),
    [
        ({"a": TEXTS, "b": TEAMS, "c": TEAMS}, {}, "text-classification: label could be b or c"),
        ({"a": TEXTS, "b": TEXTS}, {}, "text-generation: no column for messages"),
        ({"text": TEXTS, "label": ["one"] * 40}, {}, "one class only"),
        ({"text": TEXTS, "label": [None, *TEAMS[1:]]}, {}, "no label in row 1"),
        ({"a": TEXTS, "b": TEAMS}, {"given": {"text": "x"}}, "no column 'x'; columns: a, b"),
        ({"a": TEXTS, "b": TEAMS}, {"given": {"txt": "a"}}, "it has no role 'txt'"),
        ({"a": TEXTS, "b": TEAMS}, {"task": "text-generation"}, "no column for messages"),
    ],
)
def test_why_no_task_suits(
    columns: dict[str, list[Any]], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(HftuneError, match="the rows suit no task") as caught:
        guess_tasks(Dataset.from_dict(columns), **options)
    assert says in caught.value.message


def test_forms_name_roles_of_the_tasks() -> None:
    roles = {name: {role.name for role in row.resolve().roles} for name, row in TASKS.items()}
    for task, row in TASKS.items():
        assert all(set(form.cells) <= roles[task] for form in row.resolve().forms())
    assert set(BY_CONTENTS) <= set().union(*roles.values())


def test_a_target_with_a_known_name_suggests_a_text_of_any_name() -> None:
    columns = {"note": TEXTS, "tgt": TEXTS[::-1]}
    assert guessed(columns) == ("text2text-generation", {"text": "note", "target": "tgt"})


def test_a_task_without_forms_of_its_own_is_guessed_by_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_names = (form_of(TextClassification.roles),)
    monkeypatch.setattr(TextClassification, "forms", lambda self: by_names)
    assert guessed({"text": TEXTS, "label": TEAMS})[0] == "text-classification"
    with pytest.raises(HftuneError, match="text-classification: no column for label"):
        guessed({"text": TEXTS, "b": TEAMS})
