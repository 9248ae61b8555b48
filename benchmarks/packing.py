# SPDX-License-Identifier: Apache-2.0
"""CPU seconds to pack rows into batches by tokens, and how full the batches are.

    python benchmarks/packing.py

Lengths, in tokens of MiniLM, are drawn with replacement from ``demo:docstrings``: its summaries
and documents of all signatures and summaries of a module. One thread, medians of 5. Goal: 1,000,000
rows in 2 seconds, more than 98 % full.

Then steps of MiniLM on batches of 2,048 tokens, dealt and packed first-fit-decreasing, each in a
process of its own. Results go to benchmarks/results/packing.json.
"""

import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from hftune.core.processes import peak_memory
from hftune.data.docstrings import docstring_rows
from hftune.data.packing import Ints, first_fit_decreasing, pack
from hftune.models.load import load_tokenizer, pretrained_path
from hftune.speed.padding_free import padding_free

RESULTS = Path(__file__).parent / "results" / "packing.json"
ROWS = (10_000, 100_000, 1_000_000)
ROUNDS = 5
#: Kind of text -> tokens that a row may have, and budget.
KINDS = {"summaries": (256, 4096), "documents": (4096, 8192)}
STEPS, BUDGET = 10, 2048


def main() -> None:
    """Measure all sizes and steps, print and keep the figures."""
    if len(sys.argv) > 1:
        print(json.dumps(steps(sys.argv[1])))
        return
    tokenizer: Any = load_tokenizer(pretrained_path("demo:minilm"))
    figures = {}
    for kind, (longest, budget) in KINDS.items():
        ids = tokenizer(texts()[kind], truncation=True, max_length=longest)["input_ids"]
        known = np.array([len(row) for row in ids], dtype=np.int64)
        for padded in (False, True):
            name = f"{kind}, {'padded' if padded else 'tokens alone'}"
            figures[name] = {
                "budget": budget,
                "longest": int(known.max()),
                "mean": round(float(known.mean()), 1),
                **{str(number): measure(known, number, budget, padded) for number in ROWS},
            }
            print(name, json.dumps(figures[name], indent=2))
    result = {
        "command": "python benchmarks/packing.py",
        "versions": {"numpy": version("numpy"), "machine": platform.machine()},
        "rounds": ROUNDS,
        "packed": figures,
        "steps": {how: alone(how) for how in ("dealt", "first-fit-decreasing")},
    }
    print(json.dumps(result["steps"], indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def texts() -> dict[str, list[str]]:
    """Return the texts of each kind."""
    rows = docstring_rows()
    documents: dict[str, list[str]] = {}
    for row in rows:
        documents.setdefault(row["module"], []).append(f"{row['signature']} {row['summary']}")
    return {
        "summaries": [row["summary"] for row in rows],
        "documents": [" ".join(parts) for parts in documents.values()],
    }


def measure(known: Ints, number: int, budget: int, padded: bool) -> dict[str, Any]:
    """Return seconds and fill for so many rows."""
    rng = np.random.default_rng(0)
    lengths = rng.choice(known, number)
    seconds = []
    for _ in range(ROUNDS):
        before = time.process_time()
        batches = pack(lengths[:, None], budget, rng, padded=padded)
        seconds.append(time.process_time() - before)
    rows = np.array([len(batch) for batch in batches])
    widest = np.array([lengths[batch].max() for batch in batches])
    places, room = rows * widest, len(batches) * budget
    return {
        "cpu_seconds": round(median(seconds), 3),
        "slowest": round(max(seconds), 3),
        "batches": len(batches),
        "filled_by_tokens": round(float(lengths.sum() / room), 4),
        "filled_with_padding": round(float(places.sum() / room), 4),
        "rows_a_batch": round(float(rows.mean()), 1),
        "rows_standard_deviation": round(float(rows.std()), 1),
    }


def alone(how: str) -> Any:
    """Return what :func:`steps` measures in a process of its own."""
    done = subprocess.run([sys.executable, __file__, how], capture_output=True, check=True)
    return json.loads(done.stdout)


def steps(how: str) -> dict[str, float]:
    """Return what a few forward and backward passes of MiniLM take, on one thread."""
    torch.set_num_threads(1)
    location = pretrained_path("demo:minilm")
    tokenizer: Any = load_tokenizer(location)
    ids = tokenizer(texts()["summaries"])["input_ids"]
    lengths = np.array([len(row) for row in ids])
    rng = np.random.default_rng(0)
    batches = pack(lengths[:, None], BUDGET, rng)
    if how != "dealt":
        order = np.argsort(-lengths, kind="stable")
        batch_of = first_fit_decreasing([lengths[order]], BUDGET)[0]
        number = batch_of.max() + 1
        batches = [order[batch_of == batch] for batch in rng.permutation(number)]
    model: Any = AutoModelForSequenceClassification.from_pretrained(location, num_labels=8)
    before, seconds = peak_memory()["peak_memory_mib"], 0.0
    with padding_free(model.train(), True):
        for rows in batches[:STEPS]:
            batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
            began = time.process_time()
            model(**batch, labels=torch.zeros(len(rows), dtype=torch.long)).loss.backward()
            seconds += time.process_time() - began
            model.zero_grad()
    tokens = sum(int(lengths[rows].sum()) for rows in batches[:STEPS])
    return {
        "batches": len(batches),
        "rows_standard_deviation": round(float(np.std([len(rows) for rows in batches])), 1),
        "tokens_per_cpu_second": round(tokens / seconds),
        "peak_mib_above_the_model": peak_memory()["peak_memory_mib"] - before,
    }


if __name__ == "__main__":
    main()
