# SPDX-License-Identifier: Apache-2.0
"""The part of a task that all tasks of texts share: their processor is a tokenizer."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from rich.text import Text
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hftune.tasks import task_row
from hftune.tasks.processed import TOKENS
from hftune.tasks.processors import Processor, as_tokenizer
from hftune.tasks.task import Task

#: Tokenizers without a limit have a number far above this one.
NO_LIMIT = 10**6
#: Tokens of a row that ``hftune check`` shows.
SHOWN_TOKENS = 160
#: Tokens of the rows that a model is tried on.
SAMPLE_LENGTHS = (3, 8, 13)


class TextTask(Task):
    """A task whose models read tokens of texts."""

    auto_processor = AutoTokenizer
    processor_name = "tokenizer"
    main_input_name = TOKENS
    sample_texts = (
        "Does it come back as it left?",
        "Zwölf Boxkämpfer, 3.14 % — naïve\ttabs, 日本語 and 🙂\n",
    )

    def load_processor(self, path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
        """Return the tokenizer, which pads with EOS if it has no token for that."""
        tokenizer = as_tokenizer(super().load_processor(path, revision))
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def processor_state(self, processor: Processor) -> dict[str, Any]:
        """Return class, settings and vocabulary of a tokenizer; see :class:`Task`."""
        tokenizer = as_tokenizer(processor)
        state: dict[str, Any] = {
            "tokenizer": [type(tokenizer).__name__, tokenizer.init_kwargs, tokenizer.chat_template],
            "special": tokenizer.special_tokens_map,
        }
        if not tokenizer.is_fast:
            return {**state, "backend": tokenizer.get_vocab()}
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        # Truncation and padding are settings of its latest call.
        return {**state, "backend": {**backend, "truncation": None, "padding": None}}

    def reads_alike(self, processor: Processor, other: Processor) -> bool:
        """Tell whether two tokenizers have one vocabulary; see :class:`Task`."""
        return as_tokenizer(processor).get_vocab() == as_tokenizer(other).get_vocab()

    def processor_limit(self, processor: Processor) -> int | None:
        """Return the tokenizer's ``model_max_length``, if it has one; see :class:`Task`."""
        limit: int = as_tokenizer(processor).model_max_length
        return limit if limit < NO_LIMIT else None

    def show(
        self, row: Mapping[str, Any], example: Mapping[str, Any], processor: Processor
    ) -> Text:
        """Show the tokens of a row; see :class:`Task`."""
        text = self._shown(row, example, as_tokenizer(processor))
        if len(row["input_ids"]) > SHOWN_TOKENS:
            text.append(" ...", style="dim")
        return text

    def _shown(
        self, row: Mapping[str, Any], example: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
    ) -> Text:
        """Return the first tokens; tokens with a label are green."""
        text = Text()
        for token, label in list(zip(row["input_ids"], row["labels"], strict=True))[:SHOWN_TOKENS]:
            text.append(str(tokenizer.decode([token])), style="green" if label != -100 else "")
        return text

    def sample_inputs(self, processor: Processor) -> list[dict[str, Tensor]]:
        """Return rows of several lengths, with ids from the whole vocabulary."""
        tokenizer: Any = as_tokenizer(processor)
        size = len(tokenizer)
        ids = torch.linspace(0, size - 1, sum(SAMPLE_LENGTHS)).long().tolist()
        special = set(tokenizer.all_special_ids)
        plain = next(index for index in range(size) if index not in special)
        whole = torch.tensor([plain if index in special else index for index in ids])
        decodes = task_row(self.name).encoder_decoder
        return [
            {
                "input_ids": row[None],
                "attention_mask": torch.ones_like(row[None]),
                **({"decoder_input_ids": row[None]} if decodes else {}),
            }
            for row in whole.split(SAMPLE_LENGTHS)
        ]


def shown_ids(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Text:
    """Return the text of the first tokens of a row."""
    return Text(str(tokenizer.decode(ids[:SHOWN_TOKENS])))
