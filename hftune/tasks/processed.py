# SPDX-License-Identifier: Apache-2.0
"""Rows that a task has preprocessed."""

from dataclasses import dataclass, field

from datasets import Dataset

from hftune.data.shapes import NothingToTrainError

#: The main input of models that read texts.
TOKENS = "input_ids"


@dataclass
class ProcessedDataset:
    """Rows as the model takes them.

    Attributes:
        dataset: Inputs of the model and ``labels``.
        num_truncated: Number of rows that were longer than the limit.
        num_without_labels: Number of rows that had no trained token left and were dropped.
        sizes: Tokens of each row before truncation.
        expanded: Number of additional rows, where a conversation became one row for each assistant
            turn.
        sampled_from: Number of rows of which ``dataset`` is a sample; None if it has all of them.
    """

    dataset: Dataset
    num_truncated: int = 0
    num_without_labels: int = 0
    sizes: list[int] = field(default_factory=list)
    expanded: int = 0
    sampled_from: int | None = None

    @property
    def num_rows(self) -> int:
        """How many rows there are, those beside the sample included."""
        return len(self.dataset) if self.sampled_from is None else self.sampled_from

    def lengths(self) -> list[int]:
        """Return the tokens of each row of ``dataset``; 1 for a row of another kind."""
        if TOKENS not in self.dataset.column_names:
            return [1] * len(self.dataset)
        return [len(ids) for ids in self.dataset[TOKENS]]


class NothingTrainedError(NothingToTrainError):
    """None of the rows has a trained token.

    Attributes:
        encoded: What is known of them, without a row.
    """

    def __init__(self, rows: int, max_length: int | None, encoded: ProcessedDataset) -> None:
        super().__init__(
            f"none of the {rows} rows has a trained token after cutting to {max_length}"
        )
        self.encoded = encoded
