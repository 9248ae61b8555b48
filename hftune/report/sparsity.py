# SPDX-License-Identifier: Apache-2.0
"""Show how many weights pruning removed in each layer: figures, ``sparsity.json``, a picture."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from hftune.core.files import atomic_write_json

Pruned = Mapping[str, Mapping[str, int]]

COLOURS = "Blues"
#: With more rows than this the cells show colours without numbers.
WRITTEN_ROWS = 40


def sparsity_figures(pruned: Pruned, model: nn.Module) -> dict[str, float]:
    """Return the figures of pruning for ``metrics.json``.

    Args:
        pruned: Parameter -> number of its ``weights``, and number of them ``pruned``.
        model: The model as it is saved.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[0.0, 3.0]]))
        >>> figures = sparsity_figures({"weight": {"weights": 2, "pruned": 1}}, model)
        >>> figures["sparsity"], figures["saved_parameters"], figures["saved_zeros"]
        (0.5, 2, 1)
    """
    weights = sum(row["weights"] for row in pruned.values())
    removed = sum(row["pruned"] for row in pruned.values())
    return {
        "sparsity": removed / weights,
        "prunable_weights": weights,
        "pruned_weights": removed,
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
    """Draw a row for each layer and a column for each matrix of a layer."""
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
    """Split ``bert.encoder.layer.3.output.dense.weight`` after the number of the layer."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    cut = numbers[0] + 1 if numbers else 0
    return ".".join(parts[:cut]), ".".join(parts[cut:]).removesuffix(".weight")
