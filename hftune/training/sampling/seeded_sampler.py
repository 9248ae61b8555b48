# SPDX-License-Identifier: Apache-2.0
"""The order of the rows: decided by seed and epoch alone, the same on every process.

Accelerate deals batches out to the processes in turn and, when they do not come out even, starts
again from the first rows, which then count twice. Here blank rows, whose labels are all -100, fill
the last batches, so two processes see what one would see.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from hftune.data.sampling.row_sampler import EpochPosition, RowSampler
from hftune.optimization.schedule_factors import TrainingSteps
from hftune.tasks.task import blank_row

Strategy = Literal["random", "sequential", "group_by_length"]


class SeededSampler(Sampler[int]):
    """Indices of one epoch, padded with the blank row's index.

    Args:
        rows: How many rows there are; the blank row's index is ``rows``.
        strategy: ``TrainingArguments.train_sampling_strategy``.
        seed: With the epoch, decides the order.
        multiple: The number of indices is padded up to a multiple of this.
        lengths: Tokens of each row, for ``group_by_length``.
        group: Rows of one optimizer step, for ``group_by_length`` and a curriculum.
        row_sampler: Chooses the rows of an epoch; None if each comes once.
        training_steps: Length of the run, for a curriculum.
    """

    def __init__(
        self,
        rows: int,
        strategy: Strategy,
        seed: int,
        *,
        multiple: int = 1,
        lengths: Sequence[int] = (),
        group: int = 1,
        row_sampler: RowSampler | None = None,
        training_steps: TrainingSteps | None = None,
    ) -> None:
        self.rows = rows
        self.strategy = strategy
        self.seed = seed
        self.multiple = multiple
        self.lengths = list(lengths)
        self.group = group
        self.row_sampler = row_sampler
        self.training_steps = TrainingSteps(1) if training_steps is None else training_steps
        self.size = rows if row_sampler is None else row_sampler.size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        yield from self._order()
        yield from [self.rows] * (len(self) - self.size)

    def _order(self) -> list[int]:
        if self.strategy == "sequential":
            return list(range(self.rows))
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.row_sampler is not None:
            return self._drawn(self.row_sampler, generator)
        if self.strategy == "group_by_length":
            return list(get_length_grouped_indices(self.lengths, self.group, generator=generator))
        return list(map(int, torch.randperm(self.rows, generator=generator)))

    def _drawn(self, row_sampler: RowSampler, generator: torch.Generator) -> list[int]:
        position = EpochPosition(
            self.epoch, self.training_steps.per_epoch or 1, self.training_steps.total, self.group
        )
        drawn = row_sampler.rows(generator, position)
        if self.strategy == "group_by_length":
            lengths = [self.lengths[index] for index in drawn]
            order = get_length_grouped_indices(lengths, self.group, generator=generator)
            return [drawn[number] for number in order]
        return drawn


class DatasetWithBlankRow(Dataset[dict[str, Any]]):
    """Rows of a dataset, and one more at the end that counts nothing."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return blank_row(self.rows[0]) if index == len(self.rows) else self.rows[index]
