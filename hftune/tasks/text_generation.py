# SPDX-License-Identifier: Apache-2.0
"""``text-generation``: causal language models on prompt/completion rows or chat messages.

The loss counts what the assistant says, the end of its turn included, and nothing else.
"""

import copy
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DataCollator,
    DataCollatorForSeq2Seq,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from hftune.core.errors import HftuneError
from hftune.data.chat import Span, assistant_spans, is_conversation
from hftune.data.columns import GROUP, Role
from hftune.data.split import Keys, joined_keys
from hftune.losses.contract import aligned, targets
from hftune.metrics.language_modelling import language_modelling_metrics
from hftune.tasks.contract import Encoded, NothingTrainedError, Task


class TextGeneration(Task):
    """Rows are ``messages``, or ``prompt`` and ``completion``."""

    name = "text-generation"
    metric_names = ("loss", "perplexity")
    auto_model = AutoModelForCausalLM
    roles = (
        Role("messages", ("conversation",), required=False),
        Role("prompt", ("question",), required=False),
        Role("completion", ("answer", "response"), required=False),
        GROUP,
    )

    def select(self, rows: Dataset, columns: Mapping[str, str]) -> Dataset:
        """Return ``messages``, or ``prompt`` and ``completion``; see :class:`Task`."""
        group = {"group": rows[columns["group"]][:]} if "group" in columns else {}
        if "messages" in columns:
            conversations = rows[columns["messages"]][:]
            _check_conversations(conversations, columns["messages"])
            return Dataset.from_dict({"messages": conversations, **group})
        if "prompt" not in columns:
            raise HftuneError(
                f"no column for messages, nor for prompt and completion; "
                f"columns: {rows.column_names}",
                hint="say which: data: {columns: {prompt: ..., completion: ...}}",
            )
        texts = {
            role: _texts(rows[columns[role]][:], columns[role])
            for role in ("prompt", "completion")
            if role in columns
        }
        return Dataset.from_dict({**texts, **group})

    def learn(self, train: Dataset, validation: Dataset | None) -> None:
        """Check the rows; there is nothing else to know of them."""
        self.check(train, "training")
        if validation is not None:
            self.check(validation, "validation")

    def check(self, rows: Dataset, part: str) -> None:
        """Raise :class:`HftuneError` if there are no answers in a part."""
        if "messages" in rows.column_names:
            turns = (message["role"] for row in rows["messages"] for message in row)
            if "assistant" not in turns:
                raise HftuneError(f"no conversation of the {part} rows has an assistant turn")
        elif "completion" not in rows.column_names:
            raise HftuneError(
                f"the {part} rows have prompts and no completion; columns: {rows.column_names}",
                hint="say which: data: {columns: {completion: ...}}",
            )

    def split_keys(self, rows: Dataset) -> tuple[Keys, Keys | None]:
        """Keep equal questions together, and groups; see :class:`Task`."""
        if "prompt" in rows.column_names:
            questions = list(rows["prompt"])
        else:
            questions = [json.dumps(before_answer(row)) for row in rows["messages"]]
        groups = [list(rows["group"])] if "group" in rows.column_names else []
        return joined_keys(questions, *groups), None

    def encode(
        self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> Encoded:
        """Tokenize, mark what is trained, cut from the right; see :class:`Task`.

        Raises:
            HftuneError: No row has a trained token.
        """
        if not tokenizer.is_fast:
            raise HftuneError(f"{type(tokenizer).__name__} tells no offsets; a fast one is needed")
        columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        lengths, cut = [], 0
        for row in rows:
            ids, labels = self.encode_row(row, tokenizer)
            lengths.append(len(ids))
            cut += max_length is not None and len(ids) > max_length
            labels = labels[:max_length]
            if any(label != -100 for label in labels[1:]):
                columns["input_ids"].append(ids[:max_length])
                columns["attention_mask"].append([1] * len(labels))
                columns["labels"].append(labels)
        untrained = len(rows) - len(columns["labels"])
        encoded = Encoded(Dataset.from_dict(columns), cut, untrained, lengths)
        if untrained == len(rows):
            raise NothingTrainedError(len(rows), max_length, encoded)
        return encoded

    def encode_row(
        self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[int], list[int]]:
        """Return token ids and labels of one row, uncut; labels are -100 where not trained."""
        if "messages" in row:
            if tokenizer.chat_template is None:
                raise HftuneError(
                    "the tokenizer has no chat template, so messages cannot be rendered",
                    hint="take an instruction-tuned model, or prompt and completion columns",
                )
            text, spans = assistant_spans(tokenizer, row["messages"])
        else:
            text = row["prompt"] + row["completion"]
            spans = [(len(row["prompt"]), len(text))]
        return _encode_spans(text, spans, tokenizer, chat="messages" in row)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> DataCollator:
        """Pad to the longest row; padding is known by its place, so an EOS stays trained."""
        if tokenizer.pad_token is None:
            tokenizer = copy.deepcopy(tokenizer)  # the saved one stays as it was
            tokenizer.pad_token = tokenizer.eos_token
        return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)

    def configure(
        self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Any]:
        """Leave the config as it is."""
        return {}

    def class_counts(self, encoded: Dataset, num_classes: int) -> NDArray[np.integer[Any]]:
        """Count how often each token is trained; see :class:`Task`."""
        counts = np.zeros(num_classes, dtype=np.int64)
        for labels in encoded["labels"]:
            trained = [label for label in labels[1:] if label != -100]
            np.add.at(counts, trained, 1)
        return counts

    def classes(self, tokenizer: PreTrainedTokenizerBase, num_classes: int) -> list[str]:
        """Return the tokens; see :class:`Task`."""
        tokens = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), num_classes))))
        return [*tokens, *(f"<unused {i}>" for i in range(len(tokens), num_classes))]

    def keep(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Keep two numbers a row: the summed loss and the number of trained tokens."""
        counted = targets(labels).ne(-100)
        losses = F.cross_entropy(*aligned(logits, labels), reduction="none")
        sums = torch.zeros(len(labels), device=logits.device, dtype=losses.dtype)
        sums.index_add_(0, counted.nonzero()[:, 0], losses)
        return torch.stack([sums, counted.sum(1).to(losses.dtype)], dim=1)

    def metrics(self, kept: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """Return the token-weighted loss and perplexity."""
        return language_modelling_metrics(kept)


def _encode_spans(
    text: str, spans: list[Span], tokenizer: PreTrainedTokenizerBase, *, chat: bool
) -> tuple[list[int], list[int]]:
    """Tokenize and train the tokens that reach into a span; a final EOS is added where missing."""
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


def open_question(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the turns that the assistant is to answer: all, but for an answer that stands last."""
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def before_answer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the turns before the assistant first speaks."""
    first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
    return messages[:first]


def _check_conversations(conversations: list[Any], column: str) -> None:
    for number, conversation in enumerate(conversations, start=1):
        if not is_conversation(conversation):
            raise HftuneError(
                f"column {column!r}: row {number} is no list of messages with role and content"
            )


def _texts(values: list[Any], column: str) -> list[str]:
    wrong = [i for i, value in enumerate(values) if not isinstance(value, str)]
    if wrong:
        raise HftuneError(
            f"column {column!r}: row {wrong[0] + 1} is not text but {values[wrong[0]]!r:.40}"
        )
    if not any(value.strip() for value in values):
        raise HftuneError(f"column {column!r}: all {len(values)} texts are empty")
    return values
