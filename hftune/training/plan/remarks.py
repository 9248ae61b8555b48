# SPDX-License-Identifier: Apache-2.0
"""Warnings about settings and rows of a plan that have no effect, or an unexpected one."""

import math
from collections.abc import Iterator

from transformers.trainer_utils import IntervalStrategy

from hftune.core.console import number_of, say, warn
from hftune.data import report
from hftune.training.plan.plan import Plan


def print_rows(plan: Plan) -> None:
    """Print the number of rows, the number of cut rows, and all remarks."""
    splits = plan.splits.named
    say("rows: " + ", ".join(f"{len(split.dataset)} {name}" for name, split in splits.items()))
    if plan.splits.token_batches is not None:
        say(f"batches: {plan.splits.token_batches}")
    if cut := sum(split.num_truncated for split in splits.values()):
        limit = plan.pretrained.max_length
        say(f"{number_of(cut, 'row is', 'rows are')} cut at {limit} tokens")
    for remark in remarks(plan):
        warn(remark)


def remarks(plan: Plan) -> list[str]:
    """Return warnings about settings and rows that have no effect, or an unexpected one."""
    settings, examples = plan.settings, plan.splits.examples
    rate, task = settings.arguments.learning_rate, plan.objective.task
    return [
        *_of_rows(plan),
        *settings.optimization.remarks(plan.training_steps, rate),
        *_never_reached(plan),
        *task.remarks(examples.train),
        *report.remarks(plan.data_report),
    ]


def _of_rows(plan: Plan) -> Iterator[str]:
    """Yield remarks on rows that are left out, split, empty or streamed."""
    arguments, splits = plan.settings.arguments, plan.splits
    encoded = [split for split in (splits.train, splits.validation) if split is not None]
    if arguments.max_steps > 0 and "num_train_epochs" in plan.settings.recipe.training:
        yield (
            f"training.max_steps: {arguments.max_steps} ends the run, so "
            "training.num_train_epochs has no effect"
        )
    if splits.stream is not None:
        yield "the training rows are streamed; what is said here is of the first ones"
    if untrained := sum(split.num_without_labels for split in encoded):
        rows = number_of(untrained, "row has", "rows have")
        yield f"{rows} no trained token, so training leaves them out"
    if expanded := sum(split.expanded for split in encoded):
        yield (
            f"the chat template rewrites earlier turns, so conversations became one row for "
            f"each assistant turn: {number_of(expanded, 'row', 'rows')} more"
        )
    if empty := splits.examples.empty_texts:
        rows = number_of(empty, "training row has", "training rows have")
        yield f"{rows} an empty text"


def _never_reached(plan: Plan) -> Iterator[str]:
    """Yield remarks on settings whose effect would begin after the end of the run."""
    recipe, optimization = plan.settings.recipe, plan.settings.optimization
    total, patience = plan.training_steps.total, recipe.training.get("early_stopping_patience")
    evaluations = _evaluations(plan)
    has = f"and the run has {number_of(evaluations, 'evaluation', 'evaluations')}"
    if patience is not None and patience >= evaluations:
        yield f"training.early_stopping_patience: {patience}, {has}, so it cannot end early"
    if (usual := optimization.schedule_row.default_patience) is not None:
        waits = optimization.schedule_kwargs.get("patience", usual)
        if waits + 1 >= evaluations:  # the first evaluation is always the best so far
            yield (
                f"training.lr_scheduler_kwargs: patience {waits}, {has}, so the rate cannot "
                "fall in time"
            )
    if plan.splits.row_sampler is not None:
        yield from plan.splits.row_sampler.remarks(evaluations)
    teaching = recipe.distillation
    if teaching is not None and teaching.warmup_steps >= max(total, 1):
        yield (
            f"distillation.warmup_steps: {teaching.warmup_steps:g}, and the run has {total} "
            "optimizer steps, so alpha never reaches its value"
        )


def _evaluations(plan: Plan) -> int:
    """Return the number of evaluations during training."""
    arguments, steps = plan.settings.arguments, plan.training_steps
    if arguments.eval_strategy == IntervalStrategy.STEPS:
        every = arguments.eval_steps or 1
        return steps.total // int(every if every >= 1 else max(1, math.ceil(steps.total * every)))
    if arguments.eval_strategy == IntervalStrategy.EPOCH and steps.per_epoch:
        return math.ceil(steps.total / steps.per_epoch)
    return 0
