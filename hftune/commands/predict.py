# SPDX-License-Identifier: Apache-2.0
"""``hftune predict``: a file in, a file out, with labels and scores or with generated text."""

import json
from pathlib import Path

from datasets import Dataset

from hftune.core.console import say, warn
from hftune.core.errors import HftuneError
from hftune.core.files import atomic_write
from hftune.data.load import load_part
from hftune.training.run import Run, load

#: Roles of columns that became conversations in training.
CONVERSATIONS = {"messages", "instruction"}


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
        data: Rows, or where they are; labels are not needed.
        output: Write the rows here as jsonl, each with its prediction.
        batch_size: Rows a batch.
        max_new_tokens: Length of a generated text.

    Returns:
        The rows with ``prediction`` and, for classifiers, ``score`` (the probability of the
        prediction) and ``scores`` (label to probability).

    Raises:
        HftuneError: The rows lack a column that the task needs.
    """
    run = load(run) if not isinstance(run, Run) else run
    if output is not None and output.suffix != ".jsonl":
        raise HftuneError(f"{output}: predictions are written as .jsonl")
    rows = data if isinstance(data, Dataset) else load_part(data)
    task, facts = run.task, run.facts
    known = {r: c for r, c in facts.columns.items() if c in rows.column_names}
    selected = task.select(rows, task.columns(rows.column_names, known, answers=False))
    if facts.columns.keys() & CONVERSATIONS and "prompt" in selected.column_names:
        warn(
            "the model learned from conversations, and these prompts reach it without its chat "
            "template; a column messages or instruction goes through it"
        )
    run.model.eval()
    answers = task.predict(
        run.model,
        run.tokenizer,
        selected,
        max_length=facts.max_length,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
    merged = [{**row, **answer} for row, answer in zip(rows, answers, strict=True)]
    if output is not None:
        lines = (json.dumps(row, ensure_ascii=False, default=str) for row in merged)
        atomic_write(output, "".join(f"{line}\n" for line in lines))
        say(f"predictions: {output} ({len(merged)} rows)")
    return Dataset.from_list(merged)
