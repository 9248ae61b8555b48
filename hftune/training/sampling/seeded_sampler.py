# SPDX-License-Identifier: Apache-2.0
"""Order the rows by seed and epoch only, so that every process has the same order.

Accelerate deals batches out to the processes in turn. If the last ones do not suffice, it repeats
the first rows, which then count twice. Here blank rows, whose labels are all -100, fill the last
batches, so that two processes train on the same rows as one.
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
    """Sampler of one epoch's row indices, padded with the index of the blank row.

    Args:
        rows: Number of rows; the blank row has the index ``rows``.
        strategy: ``TrainingArguments.train_sampling_strategy``.
        seed: Decides the order, together with the epoch.
        multiple: The number of indices is padded up to a multiple of this.
        lengths: Number of tokens of each row, for ``group_by_length``.
        group: Rows of one optimizer step, for ``group_by_length`` and a curriculum.
        row_sampler: Chooses the rows of an epoch; None if each comes once.
        training_steps: Length of the run, for a curriculum.

    Example:
        >>> list(SeededSampler(3, "sequential", seed=0, multiple=2))  # 3 is the blank row
        [0, 1, 2, 3]
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
        """Set the epoch of the order."""
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
    """The rows of a dataset and, as the last one, a blank row that does not count."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return blank_row(self.rows[0]) if index == len(self.rows) else self.rows[index]
