# SPDX-License-Identifier: Apache-2.0
"""What is trained is what the assistant says and the end of its turn, to the token."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import processors
from transformers import AutoTokenizer

from hftune.core.errors import HftuneError
from hftune.data.chat_template import before_answer
from hftune.tasks.text_generation import TextGeneration

TASK = TextGeneration()


@pytest.fixture
def tokenizer(tiny_decoder: Path) -> Any:
    """A fresh tokenizer: byte-level, so a token is a byte or a special token."""
    return AutoTokenizer.from_pretrained(tiny_decoder)


def chat(*turns: str) -> list[dict[str, str]]:
    """A conversation from ``role: content`` lines."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


def selected(*conversations: list[dict[str, str]]) -> Dataset:
    rows = Dataset.from_dict({"messages": list(conversations)})
    return TASK.select(rows, {"messages": "messages"})


def asked(*rows: tuple[str, str]) -> Dataset:
    prompts, completions = zip(*rows, strict=True)
    table = Dataset.from_dict({"q": prompts, "a": completions})
    return TASK.select(table, {"prompt": "q", "completion": "a"})


def trained(row: dict[str, list[int]], tokenizer: Any) -> str:
    assert len(row["input_ids"]) == len(row["labels"]) == len(row["attention_mask"])
    pairs = zip(row["labels"], row["input_ids"], strict=True)
    assert all(label in {-100, token} for label, token in pairs)
    return tokenizer.decode([label for label in row["labels"] if label != -100])


ONE = chat("system: be brief", "user: one?", "assistant: two 😀")
TWO = [*ONE, *chat("user: <more> naïve?", "assistant:  three, four")]


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        (ONE, "two 😀<|end|>"),
        (TWO, "two 😀<|end|> three, four<|end|>"),
        ([*TWO, *chat("user: thanks")], "two 😀<|end|> three, four<|end|>"),
    ],
    ids=["one turn", "two turns", "user last"],
)
def test_chat_trains_answers_and_ends(
    tokenizer: Any, conversation: list[dict[str, str]], expected: str
) -> None:
    encoded = TASK.preprocess(selected(conversation), tokenizer, None)
    (row,) = encoded.dataset
    assert trained(row, tokenizer) == expected
    whole = tokenizer.apply_chat_template(conversation, return_dict=False)
    assert row["input_ids"] == whole
    assert encoded.sizes == [len(whole)]


def test_every_row_of_a_file(tokenizer: Any, chat_file: Path) -> None:
    rows = [json.loads(line)["messages"] for line in chat_file.read_text().splitlines()]
    encoded = TASK.preprocess(selected(*rows), tokenizer, 256)
    for row, messages in zip(encoded.dataset, rows, strict=True):
        said = [m["content"] + "<|end|>" for m in messages if m["role"] == "assistant"]
        assert trained(row, tokenizer) == "".join(said)


def test_template_without_end_token_ends_with_eos(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (row,) = TASK.preprocess(selected(chat("user: a", "assistant: b")), tokenizer, None).dataset
    assert trained(row, tokenizer) == "b<|eos|>"
    (row,) = TASK.preprocess(
        selected(chat("user: a", "assistant: b", "user: c")), tokenizer, None
    ).dataset
    assert trained(row, tokenizer) == "b"


@pytest.mark.parametrize(
    ("prompt", "completion"), [("Q: naïve? A: ", "so 😀"), ("", "all of it"), ("only", "")]
)
def test_completion_and_eos(tokenizer: Any, prompt: str, completion: str) -> None:
    (row,) = TASK.preprocess(
        asked((prompt, completion), ("x", "y")), tokenizer, None
    ).dataset.select([0])
    assert tokenizer.decode(row["input_ids"]) == f"{prompt}{completion}<|eos|>"
    assert trained(row, tokenizer) == f"{completion}<|eos|>"


def test_first_token_of_the_tokenizer_comes_once(tokenizer: Any) -> None:
    first = ("<|system|>", tokenizer.convert_tokens_to_ids("<|system|>"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first[0]} $A", special_tokens=[first]
    )
    (row,) = TASK.preprocess(asked(("a", "b")), tokenizer, None).dataset
    assert tokenizer.decode(row["input_ids"]) == "<|system|>ab<|eos|>"
    assert trained(row, tokenizer) == "b<|eos|>"
    (row,) = TASK.preprocess(selected(ONE), tokenizer, None).dataset
    assert tokenizer.decode(row["input_ids"]).count("<|system|>") == 1


def test_eos_written_out_is_not_doubled(tokenizer: Any) -> None:
    (row,) = TASK.preprocess(asked(("a", "b<|eos|>")), tokenizer, None).dataset
    assert trained(row, tokenizer) == "b<|eos|>"


@pytest.mark.parametrize("pad", ["own", "none", "eos"])
def test_eos_stays_trained_beside_padding(tokenizer: Any, pad: str) -> None:
    if pad != "own":
        tokenizer.pad_token = None if pad == "none" else tokenizer.eos_token
    before = copy.deepcopy(tokenizer.special_tokens_map)
    encoded = TASK.preprocess(asked(("a", "b"), ("a", "longer")), tokenizer, None).dataset
    batch = TASK.collator(tokenizer)(list(encoded))
    assert tokenizer.special_tokens_map == before, "the saved tokenizer stays as it was"
    assert batch["input_ids"].shape == (2, 8)
    eos = tokenizer.eos_token_id
    assert batch["labels"][0].tolist() == [-100, *encoded[0]["labels"][1:], *[-100] * 5]
    assert batch["labels"][0, 2] == batch["labels"][1, 7] == eos
    assert batch["attention_mask"].sum(1).tolist() == [3, 8]


def test_cut_from_the_right_and_counted(tokenizer: Any) -> None:
    encoded = TASK.preprocess(asked(("ab", "cdef"), ("a", "b"), ("long one", "x")), tokenizer, 4)
    assert encoded.sizes == [7, 3, 10]
    assert (encoded.num_truncated, encoded.num_without_labels) == (2, 1)
    assert [trained(row, tokenizer) for row in encoded.dataset] == ["cd", "b<|eos|>"]


def test_first_token_alone_is_not_trained(tokenizer: Any) -> None:
    rows = Dataset.from_dict({"prompt": ["", "ab"], "completion": ["xyz", "c"]})
    encoded = TASK.preprocess(rows, tokenizer, 2)
    assert [trained(row, tokenizer) for row in encoded.dataset] == ["xy"]
    with pytest.raises(HftuneError, match="none of the 2 rows has a trained token"):
        TASK.preprocess(rows, tokenizer, 1)


def test_nothing_left_to_train(tokenizer: Any) -> None:
    with pytest.raises(
        HftuneError, match="none of the 2 rows has a trained token after cutting to 3"
    ):
        TASK.preprocess(asked(("long", "a"), ("longer", "b")), tokenizer, 3)


def test_no_chat_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(HftuneError, match="the tokenizer has no chat template"):
        TASK.preprocess(selected(ONE), tokenizer, None)


def plain(*texts: str) -> Dataset:
    return TASK.select(Dataset.from_dict({"text": texts}), {"text": "text"})


def test_plain_text_in_blocks_of_one_size(tokenizer: Any) -> None:
    texts = ("naïve text", "", "x", "a much longer document 😀")
    task = TextGeneration(block_size=8)
    encoded = task.preprocess(plain(*texts), tokenizer, 16)
    whole = "".join(f"{text}<|eos|>" for text in texts if text)
    tokens = tokenizer(whole)["input_ids"]
    assert [token for row in encoded.dataset for token in row["input_ids"]] == tokens
    assert set(encoded.sizes[:-1]) == {8}
    assert encoded.dataset["labels"][:] == encoded.dataset["input_ids"][:]
    assert (encoded.num_truncated, encoded.expanded) == (0, 0)
    assert TASK.preprocess(plain(*texts), tokenizer, 16).sizes[0] == 16, "the limit is the default"


def test_documents_on_their_own(tokenizer: Any) -> None:
    task = TextGeneration(block_size=4, pack_documents=False)
    encoded = task.preprocess(plain("abc", "abcdefg", "abcd"), tokenizer, None)
    blocks = [tokenizer.decode(row["input_ids"]) for row in encoded.dataset]
    assert blocks == ["abc<|eos|>", "abcd", "efg<|eos|>", "abcd"]
    assert encoded.num_without_labels == 1, "an EOS alone has nothing to be predicted from"


def test_plain_text_needs_a_size_and_an_end(tokenizer: Any) -> None:
    with pytest.raises(HftuneError, match=r"set data\.block_size"):
        TASK.preprocess(plain("a"), tokenizer, None)
    with pytest.raises(HftuneError, match="20 is beyond the limit of 16 tokens"):
        TextGeneration(block_size=20).preprocess(plain("a"), tokenizer, 16)
    tokenizer.eos_token = None
    with pytest.raises(HftuneError, match="no EOS to set between documents"):
        TASK.preprocess(plain("a"), tokenizer, 16)
    with pytest.raises(HftuneError, match=r"data\.block_size: only plain text"):
        TextGeneration(block_size=4).fit_labels(selected(ONE), None)


def test_the_prompt_of_a_pair_is_not_trained(tokenizer: Any) -> None:
    rows = Dataset.from_dict({"prompt": [TWO[:4]], "completion": [TWO[4:]]})
    rows = TASK.select(rows, {"prompt": "prompt", "completion": "completion"})
    (row,) = TASK.preprocess(rows, tokenizer, None).dataset
    assert trained(row, tokenizer) == " three, four<|end|>"
    assert (
        row["input_ids"] == TASK.preprocess(selected(TWO), tokenizer, None).dataset[0]["input_ids"]
    )


def test_rewritten_turns_become_a_row_each(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] if loop.last or "
        "m['role'] != 'assistant' else '(cut)' }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    encoded = TASK.preprocess(selected(TWO, ONE), tokenizer, None)
    assert encoded.expanded == 1
    said = [trained(row, tokenizer) for row in encoded.dataset]
    assert said == ["two 😀<|end|>", " three, four<|end|>", "two 😀<|end|>"]
    for row, messages in zip(encoded.dataset, (TWO[:3], TWO, ONE), strict=True):
        assert row["input_ids"] == tokenizer.apply_chat_template(messages, return_dict=False)


def test_tools_reach_the_template(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}" + tokenizer.chat_template
    )
    tools = [{"type": "function", "function": {"name": "add"}}]
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}]
    called = [*ONE[:2], {"role": "assistant", "content": "", "tool_calls": calls}]
    called += [{"role": "tool", "content": "3"}, {"role": "assistant", "content": "three"}]
    rows = Dataset.from_dict({"messages": [called], "tools": [json.dumps(tools)]})
    rows = TASK.select(rows, {"messages": "messages", "tools": "tools"})
    (row,) = TASK.preprocess(rows, tokenizer, None).dataset
    text = tokenizer.apply_chat_template(called, tools=tools, tokenize=False)
    assert text.startswith('<|system|>[{"type"')
    assert tokenizer.decode(row["input_ids"]) == text
    assert trained(row, tokenizer) == "<|end|>three<|end|>"


def test_keep_equals_a_loop_over_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, 11, generator=generator)
    labels = torch.randint(0, 11, (4, 7), generator=generator)
    labels[0, :3] = labels[1, 5:] = labels[2, 1:] = -100
    expected = torch.zeros(4, 2)
    for row in range(4):
        for place in range(1, 7):
            if labels[row, place] != -100:
                # Two virtual tokens stand before the labels.
                scores = logits[row, 2 + place - 1].log_softmax(-1)
                expected[row] += torch.tensor([-scores[labels[row, place]], 1.0])
    kept = TASK.eval_outputs(logits, labels)
    torch.testing.assert_close(kept["loss"], expected[:, 0])
    assert kept["tokens"].tolist() == expected[:, 1].tolist()
    assert kept["loss"][2] == kept["tokens"][2] == 0
    metrics = TASK.metrics({name: value.numpy() for name, value in kept.items()})
    assert metrics["loss"] == pytest.approx(float(expected[:, 0].sum() / expected[:, 1].sum()))


def test_class_counts() -> None:
    encoded = Dataset.from_dict({"labels": [[4, 1, 1, -100, 2], [-100, 2, 0]]})
    assert TASK.class_counts(encoded, 5).tolist() == [1, 2, 2, 0, 0]


def test_classes_name_unused_ids(tokenizer: Any) -> None:
    names = TASK.classes(tokenizer, len(tokenizer) + 2)
    assert names[:3] == ["<|pad|>", "<|eos|>", "<|end|>"]
    assert len(names) == len(set(names)) == len(tokenizer) + 2
    assert TASK.classes(tokenizer, 2) == ["<|pad|>", "<|eos|>"]


def test_split_keys_are_the_questions() -> None:
    keys, strata = TASK.split_keys(asked(("a", "1"), ("a", "2"), ("b", "1")))
    assert keys[0] == keys[1] != keys[2]
    assert strata is None
    other = chat("system: be brief", "user: one?", "assistant: another")
    keys, _ = TASK.split_keys(selected(ONE, other, chat("user: one?", "assistant: x")))
    assert keys[0] == keys[1] != keys[2]
    assert before_answer(TWO) == TWO[:2]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ({"messages": ["hi"]}, {"messages": "messages"},
         "column 'messages': row 1 is no list of messages with role and content"),
        ({"x": ["a"]}, {}, r"no column for messages, nor for prompt and completion; .*\['x'\]"),
        ({"q": ["a"], "a": ["b"]}, {"completion": "a"}, "no column for messages, nor for prompt"),
        ({"q": ["a", None]}, {"prompt": "q"}, "column 'q': row 2 is not text but None"),
        ({"q": ["", " "]}, {"prompt": "q"}, "column 'q': all 2 texts are empty"),
    ],
)  # fmt: skip
def test_refused(rows: dict[str, list[Any]], columns: dict[str, str], message: str) -> None:
    with pytest.raises(HftuneError, match=message):
        TASK.select(Dataset.from_dict(rows), columns)


def test_nothing_to_learn_from() -> None:
    with pytest.raises(
        HftuneError, match="no conversation of the training rows has an assistant turn"
    ):
        TASK.fit_labels(selected(chat("user: one?")), None)
    prompts = TASK.select(Dataset.from_dict({"q": ["a"]}), {"prompt": "q"})
    with pytest.raises(HftuneError, match=r"prompts and no completion; .*\['prompt'\]"):
        TASK.fit_labels(prompts, None)
