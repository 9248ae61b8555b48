# SPDX-License-Identifier: Apache-2.0
"""``hftune evaluate``: a finished run measured on any data."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from hftune.core.console import console, say, warn
from hftune.core.files import atomic_write_json
from hftune.data.load import load_part
from hftune.losses.contract import forward
from hftune.report.summary import print_metrics
from hftune.training.run import Run, load


def evaluate(
    run: Run | str | Path,
    data: Dataset | str | list[str],
    *,
    batch_size: int = 32,
    output: Path | None = None,
) -> dict[str, Any]:
    """Measure a finished run on rows with labels.

    Args:
        run: The run, or its folder.
        data: Rows, or where they are.
        batch_size: Rows a batch; they are sorted by length, so that little is padding.
        output: Also write the metrics here, as JSON.

    Returns:
        Metrics with the prefix ``eval_``, and ``eval_per_class`` where there are classes.

    Raises:
        HftuneError: The rows lack a column or have labels that the model does not know.
    """
    from rich.progress import track

    run = load(run) if not isinstance(run, Run) else run
    task, facts = run.task, run.facts
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
        collate_fn=task.collator(run.tokenizer),
    )
    kept, labels = [], []
    run.model.eval()
    with torch.inference_mode():
        for batch in track(batches, "evaluating", console=console(), transient=True):
            on_device = {key: value.to(run.model.device) for key, value in batch.items()}
            logits = forward(run.model, on_device).logits
            kept.append(task.keep(logits, on_device["labels"]).cpu().numpy())
            labels.append(batch["labels"].numpy().reshape(len(kept[-1]), -1)[:, 0])
    scores, truth = np.concatenate(kept), np.concatenate(labels)
    metrics: dict[str, Any] = {
        f"eval_{name}": value for name, value in task.metrics(scores, truth).items()
    }
    if per_class := task.per_class(scores, truth):
        metrics["eval_per_class"] = per_class
    metrics["eval_samples"] = len(truth)
    print_metrics(metrics)
    if output is not None:
        atomic_write_json(output, metrics)
        say(f"metrics: {output}")
    return metrics


def _present(columns: dict[str, str], rows: Dataset) -> dict[str, str]:
    """The training columns that these rows have, too."""
    return {role: name for role, name in columns.items() if name in rows.column_names}
