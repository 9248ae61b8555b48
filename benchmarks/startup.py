# SPDX-License-Identifier: Apache-2.0
"""CPU seconds until hftune answers: help, and a mistake in a recipe (schema cached).

    python benchmarks/startup.py

Median of 10 whole processes each, user and system time. Goals: 0.35 and 0.7. Results go to
benchmarks/results/startup.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results" / "startup.json"
MISTAKE = (
    "task: text-classification\nmodel: demo:minilm\ndata: demo:docstrings\n"
    "method: {name: lora, rank: 8}\n"
)


def main() -> None:
    """Measure both, print and keep the figures."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "mistake.yaml"
        recipe.write_text(MISTAKE)
        cases = {"help": ["--help"], "recipe mistake": ["train", str(recipe)]}
        figures = {}
        for name, arguments in cases.items():
            cpu_seconds(arguments)  # writes the caches
            runs = sorted(cpu_seconds(arguments) for _ in range(10))
            figures[name] = {"median": median(runs), "min": runs[0], "max": runs[-1]}
            print(name, figures[name])
    result = {"command": "python benchmarks/startup.py", "cpu_seconds": figures}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def cpu_seconds(arguments: list[str]) -> float:
    """Return what one process takes."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "hftune", *arguments], capture_output=True, check=False)
    after = os.times()
    spent = after.children_user + after.children_system
    return round(spent - before.children_user - before.children_system, 3)


if __name__ == "__main__":
    main()
