# SPDX-License-Identifier: Apache-2.0
"""Batches by tokens: what each micro-batch of an epoch holds, with ``data.token_budget``.

Seed and epoch decide it, alike on every process. Each epoch of a run has as many batches, so that
epochs, schedules and a resumed run count the same steps: all of them are packed before the run, the
one that takes the most says how many, and in the others the batches of most rows are halved.
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
    """The batches of one process; the Trainer takes them as they are, for what they derive from.

    Args:
        sizes: Tokens of the rows, shape ``(N, parts)``; see :func:`hftune.data.packing.pack`.
        budget: Tokens that a batch may hold, no fewer than the longest row has.
        order: Puts the rows of an epoch in order. The blank row's index is ``order.rows``.
        arguments: The Trainer's.
        padded: Why a batch holds its rows times the longest; None where it holds the sum.
        share: Rows of an epoch for each that is known, where a sample of them is.

    Attributes:
        number: Batches of an epoch, of all processes together.
        rows: Rows of an epoch.
        fill: How full batches are on average, between 0 and 1, padding included.
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
        # All but set_epoch is our own, so the parent's rows and groups are not set up.
        self.sizes, self.budget, self.order = sizes, budget, order
        self.padded, self.share = padded, share
        self.rows = round(order.size * share)
        self.epoch = 0
        self._plan(arguments)

    def for_run(self, arguments: TrainingArguments) -> "TokenBatches":
        """Return the batches of a run of another length over the same rows."""
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
        """How many epochs the run has, if each has so many batches."""
        if arguments.max_steps <= 0:
            return math.ceil(arguments.num_train_epochs)
        together = self.processes * arguments.gradient_accumulation_steps
        epochs: int = math.ceil(arguments.max_steps / math.ceil(batches / together))
        return epochs

    def _packed(self, epoch: int) -> list[Ints]:
        """The rows of each batch of an epoch."""
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
        """Tokens of a batch, with its padding where it is padded."""
        sizes = self.sizes[batch]
        return int(sizes.sum() if self.padded is None else len(sizes) * sizes.max(0).sum())
