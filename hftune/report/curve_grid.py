# SPDX-License-Identifier: Apache-2.0
"""Draw several curves of one kind in small pictures side by side."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

COLUMNS = 4
COLOUR = "#1f77b4"


def draw_grid(
    curves: Mapping[str, Sequence[float]],
    captions: Mapping[str, str],
    path: Path,
    *,
    xlabel: str,
    ylabel: str,
) -> None:
    """Draw each curve under its name.

    Args:
        curves: Name -> values by step.
        captions: Name -> a second line in smaller letters.
        path: The file; its suffix is the format.
        xlabel: Label below the lowest row.
        ylabel: Label beside the first column.
    """
    rows = math.ceil(len(curves) / COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 2.3 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    for number, (axes, (name, values)) in enumerate(zip(grid, curves.items(), strict=False)):
        axes.plot(range(len(values)), values, color=COLOUR)
        axes.set_title(f"{name}\n", fontsize=10)
        axes.text(
            0.5, 1.03, captions.get(name, ""), fontsize=7, ha="center", transform=axes.transAxes
        )
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if number % COLUMNS == 0:
            axes.set_ylabel(ylabel)
        if number + COLUMNS >= len(curves):
            axes.set_xlabel(xlabel)
            axes.tick_params(labelbottom=True)
    for axes in grid[len(curves) :]:
        axes.set_visible(False)
    figure.savefig(path, dpi=150)
