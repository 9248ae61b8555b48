# SPDX-License-Identifier: Apache-2.0
"""What a task answers: which columns, how a row becomes tokens, what evaluation keeps and says."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from transformers import DataCollator, PreTrainedConfig, PreTrainedTokenizerBase

from hftune.core.errors import HftuneError
from hftune.data.columns import Role
from hftune.data.split import Keys


@dataclass
class Encoded:
    """Rows as tokens.

    Attributes:
        rows: ``input_ids``, ``attention_mask``, ``labels`` and what else the model takes.
        cut: How many rows were longer than the limit.
        untrained: How many rows had no trained token left and were dropped.
        lengths: Tokens of each row before cutting.
        drawn_from: How many rows there are, where a sample of them is encoded.
    """

    rows: Dataset
    cut: int = 0
    untrained: int = 0
    lengths: list[int] = field(default_factory=list)
    drawn_from: int | None = None

    @property
    def num_rows(self) -> int:
        """How many rows there are, those beside the sample included."""
        return len(self.rows) if self.drawn_from is None else self.drawn_from


class NothingTrainedError(HftuneError):
    """None of the rows has a trained token.

    Attributes:
        encoded: What is known of them, without a row.
    """

    def __init__(self, rows: int, max_length: int | None, encoded: Encoded) -> None:
        super().__init__(
            f"none of the {rows} rows has a trained token after cutting to {max_length}"
        )
        self.encoded = encoded


class Task(ABC):
    """One of the Hub's tasks.

    Attributes:
        name: The Hub's name.
        auto_model: The ``transformers.AutoModelFor...`` class that loads its models.
        roles: The parts that columns play.
        label_names: Class names by id; empty where the task has none.
        metric_names: What :meth:`metrics` returns and a best model can be chosen by.
    """

    name: str
    auto_model: Any
    roles: tuple[Role, ...]
    metric_names: tuple[str, ...]

    def __init__(self, label_names: Sequence[str] = ()) -> None:
        self.label_names = list(label_names)

    @abstractmethod
    def select(self, rows: Dataset, columns: Mapping[str, str]) -> Dataset:
        """Return the rows with one column a role, checked; the message names bad rows."""

    @abstractmethod
    def learn(self, train: Dataset, validation: Dataset | None) -> None:
        """Take from the selected rows what the task must know, such as label names."""

    @abstractmethod
    def check(self, rows: Dataset, part: str) -> None:
        """Raise :class:`HftuneError` if a part has what the task does not know, or lacks.

        Args:
            rows: Selected rows.
            part: The word for them in the message.
        """

    @abstractmethod
    def split_keys(self, rows: Dataset) -> tuple[Keys, Keys | None]:
        """Return what must not stand in both parts, and what both parts shall hold alike."""

    @abstractmethod
    def encode(
        self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> Encoded:
        """Turn selected rows into tokens and labels."""

    @abstractmethod
    def collator(self, tokenizer: PreTrainedTokenizerBase) -> DataCollator:
        """Return what makes a batch of encoded rows."""

    @abstractmethod
    def configure(
        self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Any]:
        """Write into the model's config what the task decides.

        Returns:
            The fields, but for the labels, that differ now from the base's own config.
        """

    @abstractmethod
    def class_counts(self, encoded: Dataset, num_classes: int) -> NDArray[np.integer[Any]]:
        """Return how often each class is a label, by id."""

    @abstractmethod
    def classes(self, tokenizer: PreTrainedTokenizerBase, num_classes: int) -> list[str]:
        """Return the name of each class, by id."""

    @abstractmethod
    def keep(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the few numbers a row that evaluation keeps, shape ``(rows, k)``."""

    @abstractmethod
    def metrics(self, kept: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """Return the metrics of all rows from what :meth:`keep` kept."""

    def per_class(self, kept: NDArray[Any], labels: NDArray[Any]) -> dict[str, dict[str, float]]:
        """Return label name -> metrics; empty where the task has no labels."""
        return {}


def blank_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row that counts nothing: its labels are all -100.

    It fills up the last batches of several processes, so that each has as many.
    """
    labels = row["labels"]
    return {**row, "labels": [-100] * len(labels) if isinstance(labels, list) else -100}
