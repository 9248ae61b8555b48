# SPDX-License-Identifier: Apache-2.0
"""Tokens as people read them, and what each is part of."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hftune.data.chat_template import render
from hftune.tasks.token_texts import encode_prompt, encode_text, read_tokens, virtual_tokens


@pytest.fixture(scope="module")
def words(tiny_encoder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_encoder)


@pytest.fixture(scope="module")
def letters(tiny_decoder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_decoder)


def test_a_pair_is_told_apart_and_special_tokens_are_marked(words: PreTrainedTokenizerBase) -> None:
    encoded = encode_text(words, "red one", "blue")
    assert [token.text.strip() for token in encoded.tokens] == [
        "[CLS]", "red", "one", "[SEP]", "blue", "[SEP]",
    ]  # fmt: skip
    assert [token.special for token in encoded.tokens] == [True, False, False, True, False, True]
    assert [token.segment for token in encoded.tokens] == ["text"] * 4 + ["text_pair"] * 2
    types = words("red one", "blue", return_token_type_ids=True)["token_type_ids"]
    assert types == [0, 0, 0, 0, 1, 1]
    assert [token.id for token in encoded.tokens] == encoded.inputs["input_ids"][0].tolist()


def test_a_classifiers_text_is_cut_on_the_right(words: PreTrainedTokenizerBase) -> None:
    encoded = encode_text(words, "red one two three four", max_length=4)
    assert [token.text.strip() for token in encoded.tokens] == ["[CLS]", "red", "one", "[SEP]"]
    assert encoded.num_truncated == 3
    assert encode_text(words, "red one", max_length=4).num_truncated == 0


def test_the_users_text_is_told_from_the_template(letters: PreTrainedTokenizerBase) -> None:
    prompt = render(letters, [{"role": "user", "content": "Hi you"}], prompt=True)
    encoded = encode_prompt(letters, prompt, "Hi you")
    mine = "".join(token.text for token in encoded.tokens if token.segment == "text")
    assert mine == "Hi you"
    assert {token.segment for token in encoded.tokens} == {"text", "template"}
    assert [token.text for token in encoded.tokens if token.special] == [
        "<|user|>", "<|end|>", "<|assistant|>",
    ]  # fmt: skip
    assert "".join(token.text for token in encoded.tokens) == prompt
    assert encoded.inputs["input_ids"].tolist() == [
        letters(prompt, add_special_tokens=False)["input_ids"]
    ]
    raw = encode_prompt(letters, "Hi you")
    assert {token.segment for token in raw.tokens} == {"text"}


def test_a_text_that_the_template_rewrote_is_not_guessed(letters: PreTrainedTokenizerBase) -> None:
    encoded = encode_prompt(letters, "HI YOU", "Hi you")
    assert {token.segment for token in encoded.tokens} == {"text"}


def test_a_prompt_is_cut_on_the_left_and_the_tokenizer_stays(
    letters: PreTrainedTokenizerBase,
) -> None:
    encoded = encode_prompt(letters, "abcdef", max_length=2)
    assert "".join(token.text for token in encoded.tokens) == "ef"
    assert encoded.num_truncated == 4
    assert encoded.inputs["input_ids"].shape == (1, 2)
    assert letters.truncation_side == "right"
    assert len(letters("abcdef")["input_ids"]) == 6


def test_pieces_of_a_character_keep_their_names(letters: PreTrainedTokenizerBase) -> None:
    ids = letters("a\N{SNOWMAN}b")["input_ids"]  # three bytes in the middle
    tokens = read_tokens(letters, ids, ["text"] * len(ids))
    names = letters.convert_ids_to_tokens(ids)
    assert [token.text for token in tokens][:3] == ["a", names[1], names[2]]
    assert tokens[-1].text == "b"
    assert all(token.text and "\N{REPLACEMENT CHARACTER}" not in token.text for token in tokens)


def test_virtual_tokens_are_named() -> None:
    tokens = virtual_tokens(2)
    assert [token.text for token in tokens] == ["<virtual 0>", "<virtual 1>"]
    assert {(token.id, token.special, token.segment) for token in tokens} == {
        (None, False, "virtual")
    }
