# SPDX-License-Identifier: Apache-2.0
"""What was pruned, layer by layer: figures, ``sparsity.json`` and a picture."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from hftune.core.files import atomic_write_json

Pruned = Mapping[str, Mapping[str, int]]

COLOURS = "Blues"
#: More layers than this are told by colour alone.
WRITTEN_ROWS = 40


def sparsity_figures(pruned: Pruned, model: nn.Module) -> dict[str, float]:
    """Return what ``metrics.json`` tells.

    Args:
        pruned: Parameter to ``weights`` before, and those ``pruned``.
        model: As it is saved.
    """
    weights = sum(row["weights"] for row in pruned.values())
    gone = sum(row["pruned"] for row in pruned.values())
    return {
        "sparsity": gone / weights,
        "prunable_weights": weights,
        "pruned_weights": gone,
        "saved_parameters": sum(p.numel() for p in model.parameters()),
        "saved_zeros": sum(int((p == 0).sum()) for p in model.parameters()),
    }


def write_sparsity(pruned: Pruned, folder: Path) -> list[Path]:
    """Write ``sparsity.json`` and draw ``plots/sparsity_by_layer``; return the files."""
    shares = {name: row["pruned"] / row["weights"] for name, row in pruned.items()}
    layers = {name: {**row, "sparsity": shares[name]} for name, row in pruned.items()}
    atomic_write_json(folder / "sparsity.json", layers)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    figure = _draw(shares)
    files = [folder / "plots" / f"sparsity_by_layer.{kind}" for kind in ("svg", "png")]
    for file in files:
        figure.savefig(file, dpi=150)
    return [folder / "sparsity.json", *files]


def _draw(shares: Mapping[str, float]) -> Figure:
    """A row for each layer of the stack, a column for each matrix in it."""
    cells = {_row_and_column(name): share for name, share in shares.items()}
    rows, columns = (list(dict.fromkeys(key[axis] for key in cells)) for axis in (0, 1))
    table = np.full((len(rows), len(columns)), np.nan)
    for (row, column), share in cells.items():
        table[rows.index(row), columns.index(column)] = share
    figure = Figure(
        figsize=(2.8 + 0.8 * len(columns), 1.8 + 0.28 * len(rows)), layout="constrained"
    )
    axes = figure.subplots()
    image = axes.imshow(table, vmin=0, vmax=1, cmap=COLOURS, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.spines[:].set_visible(False)
    if len(rows) <= WRITTEN_ROWS:
        for (row, column), share in np.ndenumerate(table):
            if not np.isnan(share):
                colour = "white" if share > 0.6 else "black"
                axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=colour)
    figure.colorbar(image, ax=axes, label="pruned share")
    return figure


def _row_and_column(name: str) -> tuple[str, str]:
    """Divide ``bert.encoder.layer.3.output.dense.weight`` behind the number of its layer."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    cut = numbers[0] + 1 if numbers else 0
    return ".".join(parts[:cut]), ".".join(parts[cut:]).removesuffix(".weight")
