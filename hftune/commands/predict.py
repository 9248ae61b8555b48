# SPDX-License-Identifier: Apache-2.0
"""``hftune predict``: a file in, a file out, with labels and scores or with generated text."""

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hftune.core.console import console, say, warn
from hftune.core.errors import HftuneError
from hftune.core.files import atomic_write
from hftune.data.chat import render
from hftune.data.columns import find_columns
from hftune.data.conversations import without_nulls
from hftune.data.load import load_part
from hftune.hub.load import num_positions
from hftune.losses.contract import forward
from hftune.tasks.text_generation import open_question
from hftune.training.run import Run, load


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
    run.model.eval()
    if run.facts.task == "text-classification":
        results = _classify(run, rows, batch_size)
    else:
        results = _generate(run, rows, batch_size, max_new_tokens)
    merged = [{**row, **result} for row, result in zip(rows, results, strict=True)]
    if output is not None:
        lines = (json.dumps(row, ensure_ascii=False, default=str) for row in merged)
        atomic_write(output, "".join(f"{line}\n" for line in lines))
        say(f"predictions: {output} ({len(merged)} rows)")
    return Dataset.from_list(merged)


def _classify(run: Run, rows: Dataset, batch_size: int) -> list[dict[str, Any]]:
    task, facts = run.task, run.facts
    roles = [role for role in task.roles if role.name != "label"]
    known = {r: c for r, c in facts.columns.items() if r != "label" and c in rows.column_names}
    selected = task.select(rows, find_columns(rows.column_names, roles, known))
    result = task.encode(selected, run.tokenizer, facts.max_length)
    if result.cut:
        warn(f"{result.cut} of {len(rows)} rows were longer than {facts.max_length} tokens")
    encoded = result.rows
    collate = task.collator(run.tokenizer)
    results: list[dict[str, Any]] = [{}] * len(rows)
    by_length = np.argsort([-len(ids) for ids in encoded["input_ids"]], kind="stable").tolist()
    for indices in _batches(by_length, batch_size):
        rows_of_batch: Any = collate([encoded[index] for index in indices])
        batch = rows_of_batch.to(run.model.device)
        with torch.inference_mode():
            shares = forward(run.model, batch).logits.float().softmax(-1).cpu().tolist()
        for index, share in zip(indices, shares, strict=True):
            best = int(np.argmax(share))
            results[index] = {
                "prediction": task.label_names[best],
                "score": share[best],
                "scores": dict(zip(task.label_names, share, strict=True)),
            }
    return results


def _generate(
    run: Run, rows: Dataset, batch_size: int, max_new_tokens: int
) -> list[dict[str, Any]]:
    task = run.task
    tokenizer = copy.deepcopy(run.tokenizer)  # padding on the left is for this alone
    known = {role: name for role, name in run.facts.columns.items() if name in rows.column_names}
    selected = task.select(rows, task.columns(rows.column_names, known))
    chat = "messages" in selected.column_names
    if chat:
        prompts = [
            render(
                tokenizer,
                open_question(without_nulls(row["messages"])),
                prompt=True,
                tools=json.loads(row["tools"]) if row.get("tools") else None,
            )
            for row in selected
        ]
    else:  # plain text is continued
        prompts = list(selected["prompt" if "prompt" in selected.column_names else "text"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    positions = num_positions(run.model.config)
    texts = [""] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    for indices in _batches(by_length, batch_size):
        batch = tokenizer(
            [prompts[index] for index in indices],
            add_special_tokens=not chat,
            padding=True,
            truncation=positions is not None,  # on the left: the question stands at the end
            max_length=None if positions is None else max(positions - max_new_tokens, 1),
            return_tensors="pt",
        ).to(run.model.device)
        with torch.inference_mode():
            produced = run.model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = tokenizer.batch_decode(
            produced[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for index, text in zip(indices, new, strict=True):
            texts[index] = text.strip()
    return [{"prediction": text} for text in texts]


def _batches(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    from rich.progress import track

    starts = range(0, len(indices), size)
    for start in track(starts, "predicting", console=console(), transient=True):
        yield indices[start : start + size]
