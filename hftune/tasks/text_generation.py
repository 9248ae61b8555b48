# SPDX-License-Identifier: Apache-2.0
"""``text-generation``: causal language models on prompt/completion rows or chat messages.

The loss counts what the assistant says, the end of its turn included, and nothing else.
"""

import copy
import json
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    DataCollator,
    DataCollatorForSeq2Seq,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from hftune.core.errors import HftuneError
from hftune.data.chat import Span, assistant_spans, is_conversation, render
from hftune.data.columns import GROUP, Role
from hftune.data.split import joined_keys
from hftune.tasks.contract import Encoded
from hftune.tasks.generation import GenerationTask, texts_of
from hftune.tasks.inference import free_positions, generated


class TextGeneration(GenerationTask):
    """Rows are ``messages``, or ``prompt`` and ``completion``."""

    name = "text-generation"
    causal = True
    auto_model = AutoModelForCausalLM
    roles = (
        Role("messages", ("conversation",), required=False),
        Role("prompt", ("question",), required=False),
        Role("completion", ("answer", "response"), required=False, answer=True),
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
            role: texts_of(rows[columns[role]][:], columns[role])
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

    def split_keys(self, rows: Dataset) -> tuple[list[int], list[Hashable] | None]:
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
        self.tokenizer = tokenizer
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
        if not columns["labels"]:
            raise HftuneError(
                f"none of the {len(rows)} rows has a trained token after cutting to {max_length}"
            )
        untrained = len(rows) - len(columns["labels"])
        return Encoded(Dataset.from_dict(columns), cut, untrained, lengths)

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

    def collator(
        self, tokenizer: PreTrainedTokenizerBase, model: nn.Module | None = None
    ) -> DataCollator:
        """Pad to the longest row; padding is known by its place, so an EOS stays trained."""
        if tokenizer.pad_token is None:
            tokenizer = copy.deepcopy(tokenizer)  # the saved one stays as it was
            tokenizer.pad_token = tokenizer.eos_token
        return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)

    def configure(
        self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Any]:
        """Check that the model is a decoder alone; leave its config as it is."""
        if config.is_encoder_decoder:
            raise HftuneError(
                f"model.path: {config.model_type} is an encoder with a decoder",
                hint="take task: text2text-generation",
            )
        self.settle_length(config)
        return {}

    def questions(self, model: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return what stands before the first trained token, padded on the left, and the answer.

        Of a conversation that is the first answer. A prompt that leaves no room for an answer is
        cut at its beginning.
        """
        assert self.generation is not None
        positions = free_positions(model)
        room = None if positions is None else max(positions - self.generation["max_new_tokens"], 1)
        ids, labels = inputs["input_ids"], inputs["labels"]
        prompts, answers = [], []
        for row, marks, real in zip(ids, labels, inputs["attention_mask"], strict=True):
            length = int(real.sum())
            trained = [t for t in range(1, length) if marks[t] != -100]
            start = trained[0] if trained else length
            stop = next((t for t in range(start, length) if marks[t] == -100), length)
            prompts.append(row[:start][-room if room else 0 :])
            answers.append(row[start:stop])
        mask = [torch.ones_like(prompt) for prompt in prompts]
        return (
            pad_sequence(prompts, True, self.pad_token_id, padding_side="left"),
            pad_sequence(mask, True, 0, padding_side="left"),
            pad_sequence(answers, True, -100),
        )

    def predict(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        rows: Dataset,
        *,
        max_length: int | None,
        batch_size: int,
        max_new_tokens: int,
    ) -> list[dict[str, Any]]:
        """Return the generated text; see :class:`Task`."""
        chat = "messages" in rows.column_names
        prompts = list(rows["prompt"]) if not chat else [
            render(tokenizer, open_question(turns), prompt=True) for turns in rows["messages"]
        ]  # fmt: skip
        positions = free_positions(model)
        texts = generated(
            model,
            tokenizer,
            prompts,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            max_length=None if positions is None else max(positions - max_new_tokens, 1),
            add_special_tokens=not chat,
            options=self.generation or {},
        )
        return [{"prediction": text} for text in texts]


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
