# SPDX-License-Identifier: Apache-2.0
"""Count the optimizer steps of a run, of its warmup and of an epoch."""

import math

from transformers import TrainingArguments

from hftune.optimization.schedule_factors import TrainingSteps


def count_training_steps(
    arguments: TrainingArguments, batches: int | None, total: int | None = None
) -> TrainingSteps:
    """Return the length of a run.

    Args:
        arguments: The Trainer's.
        batches: Batches of one process in an epoch; None for a stream, which has no epochs.
        total: Optimizer steps, if they are known already.

    Example:
        >>> arguments = TrainingArguments(
        ...     use_cpu=True, num_train_epochs=3, gradient_accumulation_steps=2, warmup_steps=0.1
        ... )
        >>> count_training_steps(arguments, 5)  # three steps an epoch
        TrainingSteps(total=9, warmup=1, per_epoch=3)
    """
    epoch = None if batches is None else math.ceil(batches / arguments.gradient_accumulation_steps)
    if total is None:
        total = arguments.max_steps
    if total <= 0:
        assert epoch is not None, "a stream needs max_steps"
        epochs: float = arguments.num_train_epochs
        total = math.ceil(epoch * epochs)
    warmup = int(arguments.get_warmup_steps(total))
    if arguments.warmup_steps < 1:  # a share, which is rounded up; the last step keeps its rate
        warmup = min(warmup, total - 1)
    return TrainingSteps(total, warmup, epoch)


def batches_per_epoch(arguments: TrainingArguments, rows: int) -> int:
    """Return the number of batches of each process in one pass over ``rows`` rows.

    Example:
        >>> arguments = TrainingArguments(use_cpu=True, per_device_train_batch_size=8)
        >>> batches_per_epoch(arguments, 17)  # 8, 8 and 1 rows
        3
    """
    together: int = arguments.train_batch_size * arguments.world_size
    return math.ceil(rows / together)
