# SPDX-License-Identifier: Apache-2.0
"""How many optimizer steps a run, its warmup and its epochs have."""

import math

from transformers import TrainingArguments

from hftune.schedules.factors import Span


def span_of(arguments: TrainingArguments, rows: int | None, total: int | None = None) -> Span:
    """Return the length of a run.

    Args:
        arguments: The Trainer's.
        rows: Training rows; None for a stream, which has no epochs.
        total: Optimizer steps where they are known already.
    """
    epoch = None if rows is None else steps_per_epoch(arguments, rows)
    if total is None:
        total = arguments.max_steps
    if total <= 0:
        assert epoch is not None, "a stream needs max_steps"
        epochs: float = arguments.num_train_epochs
        total = math.ceil(epoch * epochs)
    return Span(total, int(arguments.get_warmup_steps(total)), epoch)


def steps_per_epoch(arguments: TrainingArguments, rows: int) -> int:
    """Return the number of optimizer steps of one pass over ``rows`` rows."""
    batches = math.ceil(rows / (arguments.train_batch_size * arguments.world_size))
    steps: int = math.ceil(batches / arguments.gradient_accumulation_steps)
    return steps
