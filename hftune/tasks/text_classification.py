# SPDX-License-Identifier: Apache-2.0
"""``text-classification``: one label for a text or a pair of texts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    DataCollator,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from hftune.core.errors import HftuneError
from hftune.data.arrow import as_dataset, codes, column_array, column_hashes, pair_hashes
from hftune.data.columns import GROUP, Role
from hftune.data.select import distinct_values, label_column, text_column
from hftune.data.split import Keys, joined_keys
from hftune.metrics.classification import classification_metrics, per_class_metrics
from hftune.tasks.contract import Encoded, Task


class TextClassification(Task):
    """Label names come from the training rows: numbers in their order, then names in theirs."""

    name = "text-classification"
    metric_names = (
        "loss", "accuracy", "mcc", "precision_macro", "recall_macro", "f1_macro",
        "precision_weighted", "recall_weighted", "f1_weighted",
    )  # fmt: skip
    auto_model = AutoModelForSequenceClassification
    roles = (
        Role(
            "text",
            ("sentence", "sentence1", "premise", "question", "review", "content", "message",
             "summary", "body", "tweet", "document"),
        ),
        Role("label", ("labels", "category", "class", "target", "intent", "package")),
        Role(
            "text_pair",
            ("sentence2", "hypothesis", "question2"),
            required=False,
        ),
        GROUP,
    )  # fmt: skip

    def __init__(self, label_names: Sequence[str] = ()) -> None:
        super().__init__(label_names)
        self._declared: list[str] = []

    def select(self, rows: Dataset, columns: Mapping[str, str]) -> Dataset:
        """Return ``text``, ``text_pair`` where given, and ``label`` as text; see :class:`Task`."""
        selected = {
            role: text_column(rows, column)
            if role in ("text", "text_pair")
            else label_column(rows, column)
            if role == "label"
            else column_array(rows, column)
            for role, column in columns.items()
        }
        feature = rows.features[columns["label"]] if "label" in columns else None
        if isinstance(feature, ClassLabel):
            self._declared = self._declared or list(feature.names)
        return as_dataset(selected)

    def learn(self, train: Dataset, validation: Dataset | None) -> None:
        """Collect the label names, unless they are known already.

        Raises:
            HftuneError: There is one class only, or the validation part has labels of its own.
        """
        if not self.label_names:
            present = set(distinct_values(train, "label"))
            declared = self._declared if present <= set(self._declared) else []
            self.label_names = declared or sorted(present, key=_label_order)
            if len(present) < 2:
                raise HftuneError(
                    f"one class only: every label is {next(iter(present))!r}; "
                    "a classifier needs two"
                )
        if validation is not None:
            self.check(validation, "validation")

    def check(self, rows: Dataset, part: str) -> None:
        """Raise :class:`HftuneError` if a part has labels that training does not know."""
        unknown = sorted(set(distinct_values(rows, "label")) - set(self.label_names))
        if unknown:
            raise HftuneError(
                f"the {part} rows have labels that training does not know: {', '.join(unknown)}",
                hint=f"known labels: {', '.join(self.label_names)}",
            )

    def split_keys(self, rows: Dataset) -> tuple[Keys, Keys | None]:
        """Keep equal texts together, and groups, and the classes alike; see :class:`Task`."""
        texts = column_hashes(rows, "text")
        if "text_pair" in rows.column_names:
            texts = pair_hashes(texts, column_hashes(rows, "text_pair"))
        groups = [codes(column_array(rows, "group"))[0]] if "group" in rows.column_names else []
        labels, names = codes(column_array(rows, "label"))
        return joined_keys(texts, *groups), [names[label] for label in labels]

    def encode(
        self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> Encoded:
        """Tokenize, cut and number the labels; see :class:`Task`."""
        pairs = rows["text_pair"][:] if "text_pair" in rows.column_names else None
        tokens = tokenizer(rows["text"][:], pairs, truncation=False, verbose=False)
        lengths = [len(ids) for ids in tokens["input_ids"]]
        cut = sum(length > (max_length or math.inf) for length in lengths)
        if cut:
            tokens = tokenizer(rows["text"][:], pairs, truncation=True, max_length=max_length)
        columns = dict(tokens)
        if "label" in rows.column_names:
            ids = {name: index for index, name in enumerate(self.label_names)}
            columns["labels"] = [ids[label] for label in rows["label"]]
        return Encoded(Dataset.from_dict(columns), cut=cut, lengths=lengths)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> DataCollator:
        """Pad to the longest row of the batch."""
        return DataCollatorWithPadding(tokenizer)

    def configure(
        self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Any]:
        """Set the labels, and the padding token that decoders find the last position by."""
        config.id2label = dict(enumerate(self.label_names))
        config.label2id = {name: index for index, name in enumerate(self.label_names)}
        config.problem_type = "single_label_classification"
        if config.get_text_config().pad_token_id == tokenizer.pad_token_id:
            return {}
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
        return {"pad_token_id": tokenizer.pad_token_id}

    def class_counts(self, encoded: Dataset, num_classes: int) -> NDArray[np.integer[Any]]:
        """Count the rows of each label; see :class:`Task`."""
        return np.bincount(np.asarray(encoded["labels"][:]), minlength=len(self.label_names))

    def classes(self, tokenizer: PreTrainedTokenizerBase, num_classes: int) -> list[str]:
        """Return the label names; see :class:`Task`."""
        return self.label_names

    def keep(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Keep the scores: one row of logits an example."""
        return logits.float()

    def metrics(self, kept: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """Return loss, accuracy, F1 and their kin; see :func:`classification_metrics`."""
        return classification_metrics(kept, labels)

    def per_class(self, kept: NDArray[Any], labels: NDArray[Any]) -> dict[str, dict[str, float]]:
        """Return precision, recall, F1 and support of each label."""
        return per_class_metrics(kept, labels, self.label_names)


def _label_order(label: str) -> tuple[int, float, str]:
    """Numbers in their order, then names in theirs."""
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    return (1, 0.0, label) if math.isnan(number) else (0, number, label)
