# SPDX-License-Identifier: Apache-2.0
"""``text-classification``: a text, or a pair of texts, and its label, labels or number."""

import math
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from rich.text import Text
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    DataCollator,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from hftune.data.arrow import as_dataset, codes, column_array
from hftune.data.columns import GROUP, Role
from hftune.data.contents import Kind
from hftune.data.same import column_keys
from hftune.data.select import text_column
from hftune.data.split import Keys, joined_keys
from hftune.tasks.classification_task import Classification
from hftune.tasks.explain_inputs import ExplainInputs, ExplainOptions, encoded_for
from hftune.tasks.forms import Form
from hftune.tasks.label_checks import check_listed
from hftune.tasks.processed import ProcessedDataset
from hftune.tasks.processors import Processor, as_tokenizer
from hftune.tasks.text import TextTask, shown_ids


class TextClassification(Classification, TextTask):
    """A text, or a pair of texts, and its labels; see :class:`Classification` for the arguments."""

    name = "text-classification"
    auto_model = AutoModelForSequenceClassification
    roles = (
        Role(
            "text",
            ("sentence", "sentence1", "premise", "question", "review", "content", "message",
             "summary", "body", "tweet", "document"),
        ),
        Role(
            "label",
            ("labels", "category", "class", "target", "intent", "package", "score"),
            answer=True,
        ),
        Role(
            "text_pair",
            ("sentence2", "hypothesis", "question2"),
            required=False,
        ),
        GROUP,
    )  # fmt: skip

    @classmethod
    def forms(cls) -> tuple[Form, ...]:
        """Return a text and its label, labels or number; see :class:`Task`."""
        cells: dict[str, tuple[Kind, ...]] = {
            "text": ("text", "names"),
            "label": ("labels", "numbers", "lists"),
        }
        return (Form(cells=cells),)

    def select(self, rows: Dataset, columns: Mapping[str, str]) -> Dataset:
        """Return ``text``, ``text_pair`` where given, and ``label``; see :class:`Task`."""
        selected: dict[str, Any] = {}
        for role, column in columns.items():
            if role == "label":
                selected[role] = self._labels(rows, column)
            elif role in ("text", "text_pair"):
                selected[role] = text_column(rows, column, all_empty=self.streamed)
            else:
                selected[role] = column_array(rows, column)
        chosen = as_dataset(selected)
        if self.streamed and self.label_names:
            check_listed(self.kind, chosen, columns["label"], self.label_names)
        return chosen

    def split_keys(self, rows: Dataset) -> tuple[Keys, Keys | None]:
        """Keep equal texts together, and groups, and the labels alike; see :class:`Task`."""
        texts = column_keys(rows, *(n for n in ("text", "text_pair") if n in rows.column_names))
        groups = [codes(column_array(rows, "group"))[0]] if "group" in rows.column_names else []
        return joined_keys(texts, *groups), self.kind.strata(rows)

    def preprocess(
        self, rows: Dataset, processor: Processor, max_length: int | None
    ) -> ProcessedDataset:
        """Tokenize, cut and encode the labels; see :class:`Task`."""
        tokenizer = as_tokenizer(processor)
        pairs = rows["text_pair"][:] if "text_pair" in rows.column_names else None
        tokens = tokenizer(rows["text"][:], pairs, truncation=False, verbose=False)
        lengths = [len(ids) for ids in tokens["input_ids"]]
        cut = sum(length > (max_length or math.inf) for length in lengths)
        if cut:
            tokens = tokenizer(rows["text"][:], pairs, truncation=True, max_length=max_length)
        columns = dict(tokens)
        if "label" in rows.column_names:
            columns["labels"] = self.kind.encode(rows["label"][:], self.label_names)
        return ProcessedDataset(Dataset.from_dict(columns), num_truncated=cut, sizes=lengths)

    def collator(self, processor: Processor, model: nn.Module | None = None) -> DataCollator:
        """Pad to the longest row of the batch."""
        tokenizer = as_tokenizer(processor)
        return DataCollatorWithPadding(tokenizer)

    def configure(self, config: PreTrainedConfig, processor: Processor) -> dict[str, Any]:
        """Set the labels, and the padding token that decoders find the last position by."""
        tokenizer = as_tokenizer(processor)
        self.set_labels(config)
        if config.get_text_config().pad_token_id == tokenizer.pad_token_id:
            return {}
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
        return {"pad_token_id": tokenizer.pad_token_id}

    def _shown(
        self, row: Mapping[str, Any], example: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
    ) -> Text:
        """Return the text, and its label in green."""
        return shown_ids(tokenizer, row["input_ids"]).append(
            f"  -> {example['label']}", style="green"
        )

    def explain_inputs(
        self, model: Any, processor: Processor, text: str, options: ExplainOptions
    ) -> ExplainInputs:
        """Read a text, or a pair; see :class:`Task`."""
        encoded = encoded_for(as_tokenizer(processor), text, options)
        return ExplainInputs(inputs=encoded.inputs, tokens=encoded.tokens)
