# SPDX-License-Identifier: Apache-2.0
"""``hftune check``: check a recipe and its data before training."""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset
from rich.table import Table
from rich.text import Text

from hftune.core.console import console, say, warn
from hftune.data.report import SHOWN_SCRIPTS, imbalance
from hftune.evaluation.external import Metric
from hftune.hub.push_request import check_push
from hftune.losses.loss import Loss
from hftune.recipe.recipe import Recipe
from hftune.runs.run import choose_folder
from hftune.training.memory.memory_report import print_memory_report
from hftune.training.plan.plan import Plan
from hftune.training.plan.prepare import prepare
from hftune.training.plan.remarks import remarks
from hftune.training.run_fit import prepare_runner

#: Limit of rows to tokenize for each part of the data; a seed draws them.
ENCODED_ROWS = 10_000
EXAMPLES = 3
SHOWN_CLASSES = 30


def check(
    recipe: Recipe,
    *,
    train_dataset: Dataset | None = None,
    eval_dataset: Dataset | None = None,
    loss: Loss | None = None,
    metrics: Sequence[Metric] | None = None,
) -> Plan:
    """Validate the recipe and its data, and print a preview of training.

    Args:
        recipe: The recipe.
        train_dataset: Rows in place of ``data.path``.
        eval_dataset: Rows in place of ``data.validation``.
        loss: Your own loss, in place of the recipe's.
        metrics: Metrics of the ``evaluate`` library in place of ``evaluation.metrics``.

    Returns:
        The plan, with its tokenizer, config and encoded rows.

    Raises:
        HftuneError: The recipe or the data are wrong; the message names the place.
    """
    plan = prepare(
        recipe,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        loss=loss,
        metrics=metrics,
        sample=ENCODED_ROWS,
    )
    choose_folder(recipe)
    check_push(plan.settings.recipe, plan.settings.arguments)
    fitting = prepare_runner(plan)
    _print_data(plan)
    plan = _print_training(plan) if fitting is None else _print_fitting(plan, fitting.options)
    say("the recipe is fine")
    return plan


def _print_data(plan: Plan) -> None:
    _print_rows(plan)
    _print_texts(plan)
    _print_classes(plan)
    _print_examples(plan)


def _print_fitting(plan: Plan, options: Mapping[str, object]) -> Plan:
    said = ", ".join(f"{name} {value}" for name, value in options.items())
    say(f"no Trainer runs; a {plan.settings.recipe.method.name}: {said}")
    return plan


def _print_rows(plan: Plan) -> None:
    table = Table("part", "rows", "tokens 50 %", "90 %", "99 %", "longest", "cut", box=None)
    _to_the_right(table)
    parts = {
        "train": plan.splits.train,
        "unlabelled": plan.splits.unlabelled,
        "validation": plan.splits.validation,
    }
    for name, part in parts.items():
        if part is not None:
            lengths = np.percentile(part.sizes, (50, 90, 99, 100), method="inverted_cdf")
            ratio = part.num_truncated / len(part.sizes)
            about = "" if part.sampled_from is None else "about "
            share = f"{about}{round(ratio * part.num_rows)} ({ratio:.1%})"
            table.add_row(name, str(part.num_rows), *(f"{n:.0f}" for n in lengths), share)
    console().print(table)
    if any(part is not None and part.sampled_from is not None for part in parts.values()):
        say(f"tokens are counted on {ENCODED_ROWS} rows of a large part, all else on all rows")
    limit = (
        "no limit" if plan.pretrained.max_length is None else f"{plan.pretrained.max_length} tokens"
    )
    say(f"longest row taken: {limit}")
    for remark in remarks(plan):
        warn(remark)


def _print_texts(plan: Plan) -> None:
    """Print a summary of the data report."""
    report = plan.data_report
    if not report:
        return
    lengths = ", ".join(f"{n} % {length}" for n, length in report["characters"].items())
    scripts = list(report["scripts"].items())
    shown = ", ".join(f"{name} {share:.1%}" for name, share in scripts[:SHOWN_SCRIPTS])
    say(f"characters: {lengths}; letters: {shown or 'none'}")
    leakage = f"; in both parts: {report['leakage']}" if "leakage" in report else ""
    say(f"duplicates in train: {report['duplicates']}{leakage}")


def _print_classes(plan: Plan) -> None:
    names = plan.objective.task.label_names
    if not names:
        return
    counts = plan.class_counts()
    table = Table("label", plan.objective.task.counts_in, "share", box=None)
    _to_the_right(table)
    for index in np.argsort(-counts, kind="stable")[:SHOWN_CLASSES]:
        table.add_row(names[index], str(counts[index]), f"{counts[index] / counts.sum():.1%}")
    console().print(table)
    if len(names) > SHOWN_CLASSES:
        say(f"and {len(names) - SHOWN_CLASSES} labels more")
    say(f"largest class: {imbalance(counts):g} times the smallest")


def _to_the_right(table: Table) -> None:
    for column in table.columns[1:]:
        column.justify = "right"


def _print_examples(plan: Plan) -> None:
    """Print rows as the model gets them, with the trained tokens in green."""
    task, processor = plan.objective.task, plan.pretrained.processor
    for index in range(min(EXAMPLES, len(plan.splits.train.dataset))):
        row = plan.splits.train.dataset[index]
        text = task.show(row, plan.splits.examples.train[index], processor)
        line = Text(f"example {index + 1}: ", style="bold").append_text(text)
        console().print(line, soft_wrap=True)


def _print_training(plan: Plan) -> Plan:
    """Print steps and memory of training; return the plan as adapted to the device."""
    if plan.settings.recipe.distillation is not None:
        names = ", ".join(teacher.path for teacher in plan.objective.teachers)
        say(f"teacher: {names or 'the average of the weights'}")
    if plan.splits.token_batches is not None:
        say(f"batches: {plan.splits.token_batches}")
    say(f"optimizer steps: {plan.training_steps.total}")
    return print_memory_report(plan)
