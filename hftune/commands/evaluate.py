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
from hftune.data.load import load_part
from hftune.metrics.external import Metric, load_metrics
from hftune.report.summary import print_metrics
from hftune.training.run import Run, load


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
    task, facts = run.task, run.facts
    task.external_metrics = load_metrics(metrics, task.metric_names)
    given = data if isinstance(data, Dataset) else load_part(data)
    columns = task.columns(given.column_names, _present(facts.columns, given))
    rows = task.select(given, columns)
    task.check(rows, "given")
    encoded = task.encode(rows, run.tokenizer, facts.max_length)
    if encoded.cut:
        warn(f"{encoded.cut} of {len(given)} rows were longer than {facts.max_length} tokens")

    order = np.argsort([-len(ids) for ids in encoded.rows["input_ids"]], kind="stable")
    batches = DataLoader(
        encoded.rows.select(order),
        batch_size=batch_size,
        collate_fn=task.collator(run.tokenizer, run.model),
    )
    kept: Any = None
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
            step = nested_numpify(task.evaluation_step(run.model, on_device))
            kept = step if kept is None else nested_concat(kept, step)
    figures: dict[str, Any] = {
        f"eval_{name}": value for name, value in task.all_metrics(kept).items()
    }
    if per_class := task.per_class(kept):
        figures["eval_per_class"] = per_class
    figures["eval_samples"] = len(encoded.rows)
    print_metrics(figures)
    if output is not None:
        atomic_write_json(output, figures)
        say(f"metrics: {output}")
    return figures


def _present(columns: dict[str, str], rows: Dataset) -> dict[str, str]:
    """The training columns that these rows have, too."""
    return {role: name for role, name in columns.items() if name in rows.column_names}
