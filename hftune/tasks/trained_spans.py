# SPDX-License-Identifier: Apache-2.0
"""Texts as tokens: the characters that are trained, and whole documents."""

from collections.abc import Iterator

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hftune.data.chat_template import Span

TOKENIZED_TOGETHER = 1000  # documents


def encode_spans(
    text: str, spans: list[Span], tokenizer: PreTrainedTokenizerBase, *, chat: bool
) -> tuple[list[int], list[int]]:
    """Return token ids, and labels that are -100 for tokens that reach into no span.

    A final EOS is added where the text is trained to its end and does not end itself.

    Args:
        text: What is tokenized.
        spans: First character and the one after the last of what is trained.
        tokenizer: A fast one.
        chat: Whether a template made the text, which adds the special tokens itself.
    """
    encoding = tokenizer(
        text, add_special_tokens=not chat, return_offsets_mapping=True, verbose=False
    )
    ids = list(encoding["input_ids"])
    labels = [
        token if any(begin < stop and end > start for start, stop in spans) else -100
        for token, (begin, end) in zip(ids, encoding["offset_mapping"], strict=True)
    ]
    ends_itself = chat and _ends_with_special(ids, labels, tokenizer)
    eos = tokenizer.eos_token_id
    if eos is not None and not ends_itself and spans and spans[-1][1] >= len(text.rstrip()):
        if ids[-1] == eos:
            labels[-1] = eos
        else:
            ids.append(eos)
            labels.append(eos)
    return ids, labels


def _ends_with_special(
    ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase
) -> bool:
    trained = [token for token, label in zip(ids, labels, strict=True) if label != -100]
    return bool(trained) and trained[-1] in {
        *tokenizer.all_special_ids,
        *(tokenizer.added_tokens_decoder or {}),
    }


def documents(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Yield the tokens of each text that is not empty, with an EOS at its end."""
    eos = tokenizer.eos_token_id
    for start in range(0, len(rows), TOKENIZED_TOGETHER):
        texts = [text for text in rows[start : start + TOKENIZED_TOGETHER]["text"] if text]
        for ids in tokenizer(texts, verbose=False)["input_ids"] if texts else ():
            yield ids if eos is None or ids[-1:] == [eos] else [*ids, eos]
