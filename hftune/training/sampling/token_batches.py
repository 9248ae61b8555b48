# SPDX-License-Identifier: Apache-2.0
"""Pack rows into batches by number of tokens, with ``data.token_budget``.

Seed and epoch decide the batches, equally on every process. All epochs of a run have the same
number of batches, so that epochs, schedules and a resumed run count the same steps. For that, all
epochs are packed before the run. The epoch with the most batches sets their number; in the others
the batches with the most rows are halved.
"""

import copy
import math
from collections.abc import Iterator

import numpy as np
from transformers import TrainingArguments
from transformers.trainer_pt_utils import BatchRebalanceSampler

from hftune.data.packing import Ints, as_many, in_order, pack
from hftune.training.sampling.seeded_sampler import SeededSampler


class TokenBatches(BatchRebalanceSampler):
    """Batch sampler for one process.

    It subclasses ``BatchRebalanceSampler`` so that the Trainer does not reshard it.

    Args:
        sizes: Tokens of the rows, shape ``(N, parts)``; see :func:`hftune.data.packing.pack`.
        budget: Largest number of tokens in a batch, at least those of the longest row.
        order: Orders the rows of an epoch. The blank row has the index ``order.rows``.
        arguments: The Trainer's.
        padded: Reason why padding counts in the budget; None if only real tokens count.
        share: Rows of an epoch divided by the rows in ``order``, if those are a sample.

    Attributes:
        number: Number of batches in an epoch, over all processes.
        rows: Number of rows in an epoch.
        fill: Average share of the budget that a batch fills, padding included.
    """

    def __init__(
        self,
        sizes: Ints,
        budget: int,
        order: SeededSampler,
        arguments: TrainingArguments,
        *,
        padded: str | None = None,
        share: float = 1.0,
    ) -> None:
        # Only set_epoch is inherited, so the constructor of the parent is not called.
        self.sizes, self.budget, self.order = sizes, budget, order
        self.padded, self.share = padded, share
        self.rows = round(order.size * share)
        self.epoch = 0
        self._plan(arguments)

    def for_run(self, arguments: TrainingArguments) -> "TokenBatches":
        """Return the batches for a run of another length over the same rows."""
        other = copy.copy(self)
        other._plan(arguments)
        return other

    def __len__(self) -> int:
        mine: int = self.number // self.processes
        return mine

    def __iter__(self) -> Iterator[list[int]]:
        batches = as_many(self._packed(self.epoch), self.number)
        assert len(batches) <= self.number, "all epochs of the run are packed before it"
        blank = np.array([self.order.rows])
        batches += [blank] * (self.number - len(batches))
        for batch in batches[self.process :: self.processes]:
            yield batch.tolist()

    def __str__(self) -> str:
        padding = "" if self.padded is None else f", padding included ({self.padded})"
        return (
            f"an epoch has {self.number:,} of at most {self.budget:,} tokens{padding}; "
            f"{self.fill:.1%} full, {self.rows / self.number:,.1f} rows each"
        )

    def _plan(self, arguments: TrainingArguments) -> None:
        self.process, self.processes = arguments.process_index, arguments.world_size
        most = epoch = 0
        while epoch < (1 if not most or self.share != 1 else self._epochs(arguments, most)):
            batches = self._packed(epoch)
            most = max(most, math.ceil(len(batches) * self.share))
            epoch += 1
        self.number = self.processes * math.ceil(most / self.processes)
        held = sum(self._held(batch) for batch in batches)
        self.fill = held / self.budget * self.share / self.number

    def _epochs(self, arguments: TrainingArguments, batches: int) -> int:
        """Return the number of epochs of the run if each has so many batches."""
        if arguments.max_steps <= 0:
            return math.ceil(arguments.num_train_epochs)
        together = self.processes * arguments.gradient_accumulation_steps
        epochs: int = math.ceil(arguments.max_steps / math.ceil(batches / together))
        return epochs

    def _packed(self, epoch: int) -> list[Ints]:
        """Return the rows of each batch of an epoch."""
        order = self.order
        order.set_epoch(epoch)
        rows = np.fromiter(order, dtype=np.int64)
        padded, sizes = self.padded is not None, self.sizes[rows]
        if order.strategy == "sequential":
            batches = in_order(sizes, self.budget, padded=padded)
        else:
            rng = np.random.default_rng((order.seed, epoch))
            batches = pack(sizes, self.budget, rng, padded=padded)
        return [rows[batch] for batch in batches]

    def _held(self, batch: Ints) -> int:
        """Return the number of tokens of a batch, with padding if padding counts."""
        sizes = self.sizes[batch]
        return int(sizes.sum() if self.padded is None else len(sizes) * sizes.max(0).sum())
