# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of ``hftune check`` on a million rows of jsonl.

    python benchmarks/million_rows.py [--rows 1000000] [--name million_rows]

The file, the cache of its rows and the recipe lie in a temporary folder, so the first run reads
everything and the second finds it in the cache. One row in a hundred stands twice. Results go to
benchmarks/results/NAME.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hftune.core.cache import cache_folder
from hftune.data.docstrings import docstring_rows

ROOT = Path(__file__).parents[1]
LIMITS = {"seconds": 60, "peak_mib": 1024}


def main() -> None:
    """Write the file, check it twice, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--name", default="million_rows", help="of the file of results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = write_rows(folder / "rows.jsonl", options.rows)
        (folder / "cache").mkdir()
        for kept in ("models", "schema"):  # what every run shares is not measured
            (folder / "cache" / kept).symlink_to(cache_folder(kept))
        measured = {run: check(file, folder) for run in ("first", "again")}
        size = file.stat().st_size
    packages = ("torch", "transformers", "datasets", "pyarrow")
    result = {
        "command": f"python benchmarks/million_rows.py --rows {options.rows}",
        "versions": {name: version(name) for name in packages} | {"machine": platform.machine()},
        "cores": len(os.sched_getaffinity(0)),
        "rows": options.rows,
        "file_mib": round(size / 2**20, 1),
        "limits": LIMITS,
        **measured,
    }
    print(json.dumps(result, indent=2))
    target = ROOT / "benchmarks" / "results" / f"{options.name}.json"
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def write_rows(file: Path, rows: int) -> Path:
    """Write docstring summaries, two joined to a text, under their package as the label."""
    given = docstring_rows()
    generator = np.random.default_rng(0)
    with file.open("w", encoding="utf-8") as lines:
        while rows:
            number = min(rows, 10_000)
            for first, second in generator.integers(0, len(given), (number, 2)).tolist():
                text = f"{given[first]['summary']} {given[second]['summary']}"
                row = {"text": text, "label": given[first]["package"]}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            rows -= number
    return file


def check(file: Path, folder: Path) -> dict[str, Any]:
    """Run ``hftune check`` in a process of its own and return its seconds and peak memory."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"task: text-classification\nmodel: demo:minilm\ndata: {file}\nmethod: lora\n"
        f"training: {{output_dir: {folder / 'run'}}}\n",
        encoding="utf-8",
    )
    began = time.perf_counter()
    done = subprocess.Popen(
        [sys.executable, "-m", "hftune", "check", str(recipe)],
        env={**os.environ, "HFTUNE_CACHE": str(folder / "cache")},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.stderr is not None
    output = done.stderr.read()
    _, status, usage = os.wait4(done.pid, 0)
    seconds = time.perf_counter() - began
    print(output)
    if status:
        raise SystemExit(f"hftune check failed with status {status}")
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


if __name__ == "__main__":
    main()
