# SPDX-License-Identifier: Apache-2.0
"""``hftune evaluate``: a finished run measured on any data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import nested_concat, nested_numpify

from hftune.core.console import console, say, warn
from hftune.core.files import atomic_write_json
from hftune.data.arrow import column_array, lengths, picked
from hftune.data.load_rows import load_split
from hftune.evaluation.external import Metric
from hftune.report.summary import print_metrics
from hftune.runs.run import Run, load
from hftune.tasks.preprocess import preprocess_split


def evaluate(
    run: Run | str | Path,
    data: Dataset | str | list[str],
    *,
    batch_size: int = 32,
    output: Path | None = None,
    metrics: Sequence[Metric] = (),
) -> dict[str, Any]:
    """Measure a finished run on rows with labels.

    Args:
        run: The run, or its folder.
        data: Rows, or where they are.
        batch_size: Rows a batch; they are sorted by length, so that little is padding.
        output: Also write the metrics here, as JSON.
        metrics: Metrics of the ``evaluate`` library beside the task's own, as objects, or by name
            or path, whose scripts run here.

    Returns:
        Metrics with the prefix ``eval_``, and ``eval_per_class`` where there are classes.

    Raises:
        HftuneError: The rows lack a column or have labels that the model does not know.
    """
    from rich.progress import track

    run = load(run) if not isinstance(run, Run) else run
    task, metadata = run.task, run.metadata
    task.add_metrics(metrics)
    given = data if isinstance(data, Dataset) else load_split(data)
    columns = task.columns(given.column_names, _present(metadata.columns, given))
    rows = task.select(given, columns)
    task.check(rows, "given")
    encoded = preprocess_split(task, rows, run.tokenizer, metadata.max_length)
    if encoded.num_truncated:
        warn(f"cut at {metadata.max_length} tokens: {encoded.num_truncated} of {len(given)} rows")

    order = np.argsort(-lengths(column_array(encoded.dataset, "input_ids")), kind="stable")
    batches = DataLoader(
        picked(encoded.dataset, order),
        batch_size=batch_size,
        collate_fn=task.collator(run.tokenizer, run.model),
    )
    steps: list[Any] = []
    run.model.eval()
    with torch.inference_mode():
        for batch in track(
            batches,
            "evaluating",
            console=console(),
            transient=True,
            disable=not console().is_terminal,
        ):
            on_device = {key: value.to(run.model.device) for key, value in batch.items()}
            steps.append(nested_numpify(task.evaluation_step(run.model, on_device)))
    kept = _together(steps)
    figures: dict[str, Any] = {
        f"eval_{name}": value for name, value in task.all_metrics(kept).items()
    }
    if per_class := task.per_class(kept):
        figures["eval_per_class"] = per_class
    figures["eval_samples"] = len(encoded.dataset)
    print_metrics(figures)
    if output is not None:
        atomic_write_json(output, figures)
        say(f"metrics: {output}")
    return figures


def _together(steps: list[Any]) -> Any:
    """What all batches kept; put together in pairs, so that nothing is copied for each batch."""
    while len(steps) > 1:
        pairs = [nested_concat(*steps[i : i + 2]) for i in range(0, len(steps) - 1, 2)]
        steps = pairs + steps[2 * len(pairs) :]
    return steps[0]


def _present(columns: dict[str, str], rows: Dataset) -> dict[str, str]:
    """The training columns that these rows have, too."""
    return {role: name for role, name in columns.items() if name in rows.column_names}
