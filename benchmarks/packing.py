# SPDX-License-Identifier: Apache-2.0
"""CPU seconds to pack rows into batches by tokens, and how full the batches are.

    python benchmarks/packing.py

Lengths, in tokens of MiniLM, are drawn with replacement from ``demo:docstrings``: its summaries
and documents of all signatures and summaries of a module. One thread, medians of 5. Goal: 1,000,000
rows in 2 seconds, more than 98 % full. Results go to benchmarks/results/packing.json.
"""

import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from hftune.data.docstrings import docstring_rows
from hftune.data.packing import Ints, pack
from hftune.hub.load import load_tokenizer, model_location

RESULTS = Path(__file__).parent / "results" / "packing.json"
ROWS = (10_000, 100_000, 1_000_000)
ROUNDS = 5
#: Kind of text -> tokens that a row may have, and budget.
KINDS = {"summaries": (256, 4096), "documents": (4096, 8192)}


def main() -> None:
    """Measure all sizes, print and keep the figures."""
    tokenizer: Any = load_tokenizer(model_location("demo:minilm"))
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
    }
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


if __name__ == "__main__":
    main()
