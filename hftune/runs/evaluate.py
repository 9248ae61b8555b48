# SPDX-License-Identifier: Apache-2.0
"""Measurement of a finished run on rows with labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import nested_concat, nested_numpify

from hftune.core.console import console, warn
from hftune.data.arrow import picked
from hftune.evaluation.external import Metric
from hftune.runs.run import Run
from hftune.tasks.preprocess import preprocess_split
from hftune.tasks.processed import ProcessedDataset
from hftune.tasks.reader import read_more_rows
from hftune.tasks.task import EvalArrays, Task


def evaluate_run(
    run: Run, given: Dataset, batch_size: int, metrics: Sequence[Metric] = ()
) -> dict[str, Any]:
    """Return the metrics of a run on rows.

    Args:
        run: Finished.
        given: Rows as they were read from their source.
        batch_size: Rows a batch; they are sorted by length, so that little is padding.
        metrics: Metrics of the ``evaluate`` library beside the task's own.

    Returns:
        Metrics with the prefix ``eval_``, and ``eval_per_class`` where there are classes.

    Raises:
        HftuneError: The rows lack a column or have labels that the model does not know.
    """
    task, metadata = run.task, run.metadata
    task.add_metrics(metrics)
    rows = read_more_rows(task, given, metadata.columns)
    task.check(rows, "given")
    processed = preprocess_split(task, rows, run.processor, metadata.max_length)
    if processed.num_truncated:
        warn(f"cut at {metadata.max_length} tokens: {processed.num_truncated} of {len(given)} rows")
    outputs = _eval_outputs(run, task, processed, batch_size)
    figures: dict[str, Any] = {
        f"eval_{name}": value for name, value in task.all_metrics(outputs).items()
    }
    if per_class := task.per_class(outputs):
        figures["eval_per_class"] = per_class
    figures["eval_samples"] = len(processed.dataset)
    return figures


def _eval_outputs(run: Run, task: Task, processed: ProcessedDataset, batch_size: int) -> EvalArrays:
    """Run the model on all rows, and return what its task keeps of them."""
    from rich.progress import track

    order = np.argsort(-np.asarray(processed.lengths()), kind="stable")
    batches = DataLoader(
        picked(processed.dataset, order),
        batch_size=batch_size,
        collate_fn=task.collator(run.processor, run.model),
    )
    hidden = not console().is_terminal
    steps: list[Any] = []
    run.model.eval()
    with torch.inference_mode():
        for batch in track(
            batches, "evaluating", console=console(), transient=True, disable=hidden
        ):
            on_device = {key: value.to(run.model.device) for key, value in batch.items()}
            steps.append(nested_numpify(task.evaluation_step(run.model, on_device)))
    return _together(steps)


def _together(steps: list[Any]) -> EvalArrays:
    """Put the outputs of all batches together in pairs, so that nothing is copied for each."""
    while len(steps) > 1:
        pairs = [nested_concat(*steps[i : i + 2]) for i in range(0, len(steps) - 1, 2)]
        steps = pairs + steps[2 * len(pairs) :]
    outputs: EvalArrays = steps[0]
    return outputs
