# SPDX-License-Identifier: Apache-2.0
"""``hftune predict``: predict labels with scores, or generate text, for the rows of a file."""

from pathlib import Path

from datasets import Dataset

from hftune.core.console import say
from hftune.core.errors import HftuneError
from hftune.data.load_rows import load_split
from hftune.runs.predict import predict_rows
from hftune.runs.run import Run, load


def predict(
    run: Run | str | Path,
    data: Dataset | str | list[str],
    output: Path | None = None,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 64,
) -> Dataset:
    """Predict rows with a finished run.

    Args:
        run: The run, or its folder.
        data: Rows, or their file, folder or Hub id; labels are not needed.
        output: A jsonl file for the rows with their predictions. Until it is complete, the rows are
            in a file next to it whose name ends in ``.partial``.
        batch_size: Rows of a batch.
        max_new_tokens: Maximum length of a generated text.

    Returns:
        The rows with ``prediction`` and, for classifiers, ``score`` (the probability of the
        prediction) and ``scores`` (label -> probability).

    Raises:
        HftuneError: The rows lack a column that the task needs.
    """
    run = load(run) if not isinstance(run, Run) else run
    if output is not None and output.suffix != ".jsonl":
        raise HftuneError(f"{output}: predictions are written as .jsonl")
    rows = data if isinstance(data, Dataset) else load_split(data)
    predicted = predict_rows(run, rows, output, batch_size, max_new_tokens)
    if output is not None:
        say(f"predictions: {output} ({len(rows)} rows)")
    return predicted
