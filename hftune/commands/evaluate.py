# SPDX-License-Identifier: Apache-2.0
"""``hftune evaluate``: compute the metrics of a finished run on labelled rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from hftune.core.console import say
from hftune.core.files import atomic_write_json
from hftune.data.load_rows import load_split
from hftune.evaluation.external import Metric
from hftune.report.summary import print_metrics
from hftune.runs.evaluate import evaluate_run
from hftune.runs.run import Run, load


def evaluate(
    run: Run | str | Path,
    data: Dataset | str | list[str],
    *,
    batch_size: int = 32,
    output: Path | None = None,
    metrics: Sequence[Metric] = (),
) -> dict[str, Any]:
    """Compute the metrics of a finished run on rows with labels.

    Args:
        run: The run, or its folder.
        data: Rows, or their file, folder or Hub id.
        batch_size: Rows of a batch; rows are sorted by length to reduce padding.
        output: A JSON file to write the metrics to.
        metrics: Further metrics of the ``evaluate`` library, as objects, or by name or path. The
            script of a metric runs on this machine.

    Returns:
        Metrics with the prefix ``eval_``, and ``eval_per_class`` if there are classes.

    Raises:
        HftuneError: The rows lack a column or have labels that the model does not know.
    """
    run = load(run) if not isinstance(run, Run) else run
    rows = data if isinstance(data, Dataset) else load_split(data)
    figures = evaluate_run(run, rows, batch_size, metrics)
    print_metrics(figures)
    if output is not None:
        atomic_write_json(output, figures)
        say(f"metrics: {output}")
    return figures
