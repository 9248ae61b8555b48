# SPDX-License-Identifier: Apache-2.0
"""How many optimizer steps a run, its warmup and its epochs have."""

import math

from transformers import TrainingArguments

from hftune.optimization.schedule_factors import TrainingSteps


def count_training_steps(
    arguments: TrainingArguments, batches: int | None, total: int | None = None
) -> TrainingSteps:
    """Return the length of a run.

    Args:
        arguments: The Trainer's.
        batches: Those of an epoch, of one process; None for a stream, which has no epochs.
        total: Optimizer steps where they are known already.
    """
    epoch = None if batches is None else math.ceil(batches / arguments.gradient_accumulation_steps)
    if total is None:
        total = arguments.max_steps
    if total <= 0:
        assert epoch is not None, "a stream needs max_steps"
        epochs: float = arguments.num_train_epochs
        total = math.ceil(epoch * epochs)
    warmup = int(arguments.get_warmup_steps(total))
    if arguments.warmup_steps < 1:  # a share, rounded up, which leaves the last step its rate
        warmup = min(warmup, total - 1)
    return TrainingSteps(total, warmup, epoch)


def batches_per_epoch(arguments: TrainingArguments, rows: int) -> int:
    """Return how many batches each process has in one pass over ``rows`` rows."""
    together: int = arguments.train_batch_size * arguments.world_size
    return math.ceil(rows / together)
