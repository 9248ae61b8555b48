# SPDX-License-Identifier: Apache-2.0
"""One notion of the same text: what the split keeps together is what the report counts."""

import unicodedata

import numpy as np
import pytest
from datasets import Dataset

from hftune.data.report import data_report
from hftune.data.same import column_keys, folded
from hftune.recipe.recipe import Recipe
from hftune.training.plan.objective import build_task
from hftune.training.plan.sources import hold_out

WORDS = ["Straße", "café", "One", "two", "İ", "ﬁn", "漢字", "x"]


def varied(text: str, generator: np.random.Generator) -> str:
    """The same text in another case, with other white space, composed in another way."""
    case = generator.choice([str, str.upper, str.lower, str.title])
    form = generator.choice(["NFC", "NFD"])
    gap = generator.choice([" ", "  ", "\t", "\n", "\u00a0"])
    return str(gap + unicodedata.normalize(form, case(text)).replace(" ", gap) + gap)


def texts(generator: np.random.Generator, number: int) -> list[str]:
    bases = [" ".join(generator.choice(["uno", "café", "three", "x"], 2)) for _ in range(12)]
    return [varied(str(generator.choice(bases)), generator) for _ in range(number)]


def rows_of(task: str, shape: str, generator: np.random.Generator) -> dict[str, list[object]]:
    given, more = texts(generator, 120), texts(generator, 120)
    if task == "text-classification":
        columns: dict[str, list[object]] = {"text": [*given], "label": ["a", "b"] * 60}
        return {**columns, "text_pair": [*more]} if shape == "pair" else columns
    if task == "token-classification":
        return {
            "tokens": [t.split() for t in given],
            "tags": [["O"] * len(t.split()) for t in given],
        }
    if task == "text2text-generation":
        return {"text": [*given], "target": [*more]}
    if shape == "text":
        return {"text": [*given]}
    if shape == "prompt":
        return {"prompt": [*given], "completion": [*more]}
    pairs = zip(given, more, strict=True)
    turns = [[("user", question), ("assistant", answer)] for question, answer in pairs]
    return {"messages": [[{"role": r, "content": c} for r, c in turn] for turn in turns]}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ("text-classification", ""),
        ("text-classification", "pair"),
        ("token-classification", ""),
        ("text2text-generation", ""),
        ("text-generation", "text"),
        ("text-generation", "prompt"),
        ("text-generation", "messages"),
    ],
)
def test_a_split_never_leaks_what_the_report_looks_for(task: str, shape: str, seed: int) -> None:
    table = Dataset.from_dict(rows_of(task, shape, np.random.default_rng(seed)))
    chosen = build_task(Recipe(task=task, model="demo:minilm", data="none.csv"))
    rows = chosen.select(table, chosen.columns(table.column_names, {}))
    train, held_out = hold_out(rows, chosen, 0.3, seed)
    report = data_report(rows.select(train), rows.select(held_out))
    assert report["leakage"] == 0
    assert report["duplicates"] > 0
    torn = np.random.default_rng(seed).permutation(len(rows))
    assert data_report(rows.select(torn[:80]), rows.select(torn[80:]))["leakage"] > 0


@pytest.mark.parametrize("seed", range(20))
def test_variants_are_the_same(seed: int) -> None:
    generator = np.random.default_rng(seed)
    text = " ".join(generator.choice(WORDS[1:4], 3))
    assert folded(varied(text, generator)) == folded(varied(text, generator))
    assert folded("Straße") == folded("STRASSE")


def test_others_are_not() -> None:
    different = ["a b", "ab", "a, b", "x²", "x2", "", "one turn"]
    assert len({folded(text) for text in different}) == len(different)


def test_conversations_are_compared_turn_by_turn() -> None:
    def said(*turns: str) -> str:
        pairs = (turn.split(": ") for turn in turns)
        return folded([{"role": role, "content": content} for role, content in pairs])

    assert said("user: A  b", "assistant: c") == said("user: a b", "assistant: C")
    assert said("user: a b", "assistant: c") != said("user: a", "assistant: b c")
    assert said("user: a") != said("system: a")


def test_keys_of_several_columns_are_of_the_pair() -> None:
    rows = Dataset.from_dict({"text": ["a", "A ", "b", "c"], "text_pair": ["c", "c", "c", "a"]})
    keys = column_keys(rows, "text", "text_pair").tolist()
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
