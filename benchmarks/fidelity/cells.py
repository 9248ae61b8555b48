# SPDX-License-Identifier: Apache-2.0
"""Cells of a benchmark that may be stopped at any time: each is measured once, and kept.

A cell is told by a few words and numbers (data set, method, rate, seed) and holds the figures that
were measured. The file is written after every cell; the same command goes on with what is missing.
Several processes may fill one file, since it is read again before a cell is begun and kept.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from hftune.cli.terminal import LARGE_PAGES
from hftune.core.files import atomic_write_json

BENCHMARKS = Path(__file__).resolve().parents[1]
RESULTS = BENCHMARKS / "results"
PACKAGES = ("hftune", "torch", "transformers", "peft", "accelerate", "datasets")

Cell = dict[str, Any]


def in_a_process(script: str, *words: str, ours: bool = False) -> Cell:
    """Return the cell that a script prints last when it is asked for one, in its own process.

    Args:
        script: A benchmark.
        words: What is asked for.
        ours: Whether PyTorch takes large pages, as the command line of hftune asks it to.
    """
    command = [sys.executable, script, "--one", *words]
    environment = {**os.environ, **(LARGE_PAGES if ours else {})}
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    output = ran.stdout
    cell: Cell = json.loads(output.splitlines()[-1])
    return cell


class Cells:
    """The cells of one file.

    Args:
        file: Where they are kept.
        settings: What all of them share; a file of other settings is refused.
        packages: Whose versions are told, beside the usual ones.
    """

    def __init__(self, file: Path, settings: dict[str, Any], packages: Iterable[str] = ()) -> None:
        self.file, self.settings = file, settings
        self.packages = (*PACKAGES, *packages)
        kept = self._read().get("settings", settings)
        if kept != json.loads(json.dumps(settings)):
            raise SystemExit(f"{file} holds cells of other settings: {kept}")

    def all(self, **told: Any) -> list[Cell]:
        """Return the cells that are told by these words."""
        cells: list[Cell] = self._read().get("cells", [])
        return [cell for cell in cells if told.items() <= cell.items()]

    def measure(self, work: Callable[[], Cell], /, **told: Any) -> Cell:
        """Return the cell that is told so; measure and keep it if it is not there."""
        there = self.all(**told)
        if not there:
            cell, script = told | work(), Path(sys.argv[0]).resolve()
            content = {
                "command": f"python benchmarks/{script.relative_to(BENCHMARKS)}",
                "machine": f"{platform.machine()}, {platform.system()}",
                "versions": {name: version(name) for name in self.packages},
                "settings": self.settings,
            }
            cells = self._read().get("cells", [])
            self.file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_json(self.file, self._read() | content | {"cells": [*cells, cell]})
            there = [cell]
        print({key: value for key, value in there[0].items() if not isinstance(value, list)},
              flush=True)  # fmt: skip
        return there[0]

    def over_seeds(
        self,
        work: Callable[[float, int], Cell],
        rates: list[float],
        seeds: list[int],
        judged_by: str,
        **told: Any,
    ) -> None:
        """Measure every rate with the first seed, and the best of them with the others.

        Args:
            work: Measures with a rate and a seed.
            rates: Learning rates to choose among.
            seeds: All of them.
            judged_by: The figure on validation rows that chooses; ``loss`` in its name: smallest.
            told: What else tells the cells.
        """
        first, *others = seeds
        for rate in rates:
            self.measure(lambda r=rate: work(r, first), **told, rate=rate, seed=first)  # type: ignore[misc]
        rate = self.chosen(judged_by, **told)[0]["rate"]
        for seed in others:
            self.measure(lambda s=seed: work(rate, s), **told, rate=rate, seed=seed)  # type: ignore[misc]

    def chosen(self, judged_by: str, **told: Any) -> list[Cell]:
        """Return the cells of the rate that the first seed's validation rows choose."""
        cells = self.all(**told)
        sign = -1 if "loss" in judged_by else 1
        tried = [cell for cell in cells if cell["seed"] == cells[0]["seed"]]
        rate = max(tried, key=lambda cell: sign * cell[judged_by])["rate"]
        return [cell for cell in cells if cell["rate"] == rate]

    def tell(self, summary: dict[str, Any]) -> None:
        """Keep and print what the cells show."""
        atomic_write_json(self.file, self._read() | {"summary": summary})
        print(json.dumps(summary, indent=2))

    def _read(self) -> dict[str, Any]:
        if not self.file.exists():
            return {}
        content: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        return content


def spread(values: list[float]) -> dict[str, float]:
    """Return the mean and how far apart the smallest and the largest value are."""
    return {"mean": round(mean(values), 4), "range": round(max(values) - min(values), 4)}
