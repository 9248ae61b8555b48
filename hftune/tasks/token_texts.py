# SPDX-License-Identifier: Apache-2.0
"""One text as a model reads it: its tokens, written as people read them, and what each is part of.

Segments are the words that pictures and files use: ``text``, ``text_pair``, ``template`` (what the
chat template wrote around a text), ``generated``, ``virtual`` (a prompt method's own positions).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

UNREADABLE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, kw_only=True)
class Token:
    """A position of the model's input.

    Attributes:
        text: As people read it, with the space or line break before it.
        id: In the vocabulary; None for a virtual token.
        special: Whether the tokenizer counts it among its special tokens.
        segment: What it is part of.
        output: What the model says at it: the tag of the word that begins here, or the token that
            is written next; None where that is not shown.
    """

    text: str
    id: int | None
    special: bool = False
    segment: str = "text"
    output: str | None = None


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """One row for a model, without padding.

    Attributes:
        inputs: What the model takes, tensors of shape ``(1, T)``.
        tokens: The T tokens.
        num_truncated: How many tokens were beyond the limit.
    """

    inputs: BatchEncoding
    tokens: list[Token]
    num_truncated: int = 0


def encode_text(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    text_pair: str | None = None,
    *,
    max_length: int | None = None,
) -> EncodedText:
    """Encode a text or a pair as a classifier reads it; what is too long is cut from the right.

    A special token belongs to the text that it follows, as token types have it.
    """
    whole = len(tokenizer(text, text_pair, verbose=False)["input_ids"])
    cut = 0 if max_length is None else max(whole - max_length, 0)
    limit = {"truncation": True, "max_length": max_length} if cut else {}
    inputs = tokenizer(text, text_pair, return_tensors="pt", verbose=False, **limit)
    segments, current = [], "text"
    for part in _parts(tokenizer, inputs):
        current = {0: "text", 1: "text_pair"}.get(part, current) if part is not None else current
        segments.append(current)
    ids = inputs["input_ids"][0].tolist()
    return EncodedText(
        inputs=inputs, tokens=read_tokens(tokenizer, ids, segments), num_truncated=cut
    )


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    text: str | None = None,
    *,
    max_length: int | None = None,
) -> EncodedText:
    """Encode a prompt as a language model reads it; what is too long is cut from the left.

    Args:
        tokenizer: A fast one where ``text`` is given.
        prompt: The whole prompt.
        text: The user's part of a prompt that a chat template wrote, specials included; all the
            rest is ``template``. None for a prompt that is taken as it is.
        max_length: Tokens that are kept.
    """
    chat = text is not None
    options: dict[str, Any] = {"add_special_tokens": not chat, "verbose": False}
    whole = len(tokenizer(prompt, **options)["input_ids"])
    cut = 0 if max_length is None else max(whole - max_length, 0)
    if cut:
        tokenizer = copy.deepcopy(tokenizer)  # cutting on the left is for this alone
        tokenizer.truncation_side = "left"
        options |= {"truncation": True, "max_length": max_length}
    inputs = tokenizer(prompt, return_tensors="pt", return_offsets_mapping=chat, **options)
    ids = inputs["input_ids"][0].tolist()
    segments = ["text"] * len(ids)
    if text is not None:
        offsets = inputs.pop("offset_mapping")[0].tolist()
        start = prompt.rfind(text.strip())
        stop = start + len(text.strip())
        if start >= 0:  # else the template rewrote the text
            segments = ["text" if i < stop and j > start else "template" for i, j in offsets]
    return EncodedText(
        inputs=inputs, tokens=read_tokens(tokenizer, ids, segments), num_truncated=cut
    )


def read_tokens(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], segments: Sequence[str]
) -> list[Token]:
    """Return the tokens as people read them.

    A token's text is what it adds to the decoded text, so that spaces and joined pieces are right
    for every kind of tokenizer; a piece of a character is written as in the vocabulary.
    """
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(key for key, one in added.items() if one.special)}
    names = tokenizer.convert_ids_to_tokens(list(ids))
    tokens, before = [], ""
    for index, (token_id, segment) in enumerate(zip(ids, segments, strict=True)):
        decoded = str(tokenizer.decode(list(ids[: index + 1]), clean_up_tokenization_spaces=False))
        text = decoded[len(before) :] if decoded.startswith(before) else ""
        if not text or UNREADABLE in text:
            text = names[index]
        before = decoded
        tokens.append(
            Token(text=text, id=int(token_id), special=token_id in special, segment=segment)
        )
    return tokens


def virtual_tokens(number: int) -> list[Token]:
    """Return the positions that a prompt method puts before the text."""
    return [Token(text=f"<virtual {i}>", id=None, segment="virtual") for i in range(number)]


def _parts(tokenizer: PreTrainedTokenizerBase, inputs: BatchEncoding) -> list[int | None]:
    """Which text each token is of; None where the tokenizer put it."""
    if tokenizer.is_fast:
        return inputs.sequence_ids(0)
    types = inputs.get("token_type_ids")
    return [None] * inputs["input_ids"].shape[1] if types is None else types[0].tolist()
