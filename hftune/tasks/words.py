# SPDX-License-Identifier: Apache-2.0
"""Words and the tokens that a tokenizer makes of them."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import BatchEncoding, PreTrainedTokenizerBase

from hftune.core.console import warn
from hftune.core.errors import HftuneError

WORD = re.compile(r"\S+")
Span = tuple[int, int]


def first_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> list[int | None]:
    """Return the position of each word's first token; None where it has none of its own.

    Args:
        offsets: First character and the one after the last of each token; (0, 0) of special ones.
        spans: The same of each word.
    """
    firsts: list[int | None] = []
    token = 0
    for start, stop in spans:
        while token < len(offsets) and offsets[token][1] <= start:
            token += 1
        own = token < len(offsets) and offsets[token][0] < stop and start < stop
        firsts.append(token if own else None)
        token += own
    return firsts


def tokenize_words(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    *,
    warns: bool = True,
) -> tuple[BatchEncoding, list[list[int | None]], list[int]]:
    """Tokenize; return also the first tokens of words, and the lengths before cutting.

    Words are joined by spaces, so that every tokenizer cuts them as it cuts running text, those
    that mark the space before a word included.
    """
    if not tokenizer.is_fast:
        raise HftuneError(f"{type(tokenizer).__name__} tells no offsets; a fast one is needed")
    places = [text_and_spans(row) for row in rows]
    texts = [text for text, _ in places]
    tokens = tokenizer(texts, return_offsets_mapping=True, verbose=False)
    lengths = [len(ids) for ids in tokens["input_ids"]]
    if max_length is not None and max(lengths) > max_length:
        tokens = tokenizer(
            texts, return_offsets_mapping=True, truncation=True, max_length=max_length
        )
    firsts = [
        first_tokens(offsets, spans)
        for offsets, (_, spans) in zip(tokens["offset_mapping"], places, strict=True)
    ]
    lost = sum(row.count(None) for row in firsts)
    if lost and warns:
        of = sum(map(len, firsts))
        limit = "" if max_length is None else f" within {max_length} tokens"
        have = "has" if lost == 1 else "have"
        warn(f"{lost} of {of} words {have} no token{limit}, and so no tag")
    return tokens, firsts, lengths


def text_and_spans(row: Mapping[str, Any]) -> tuple[str, list[Span]]:
    """Return the text of a row and where its words stand in it."""
    if "text" in row:
        return row["text"], [match.span() for match in WORD.finditer(row["text"])]
    ends = itertools.accumulate(len(word) + 1 for word in row["tokens"])
    spans = [(end - 1 - len(word), end - 1) for word, end in zip(row["tokens"], ends, strict=True)]
    return " ".join(row["tokens"]), spans
