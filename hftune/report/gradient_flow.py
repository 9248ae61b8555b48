# SPDX-License-Identifier: Apache-2.0
"""How gradients get through the layers of a model: a picture, and a word where they do not."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hftune.core.console import number_of

PREFIX = "grad_norm/layer_"
#: How many times apart the norms of the lowest and the highest layer may be.
TOLERATED = 1000.0
STRETCHES = ("first third", "second third", "last third")

#: Layer -> norms at the logged steps, from the lowest layer to the highest.
Norms = dict[int, list[float]]


def layer_norms(log: Sequence[Mapping[str, Any]]) -> Norms:
    """Return the norms of the layers, as ``training.log_grad_norms: layers`` logged them."""
    found: Norms = {}
    for line in log:
        for key, value in line.items():
            if key.startswith(PREFIX):
                found.setdefault(int(key.removeprefix(PREFIX)), []).append(float(value))
    return dict(sorted(found.items()))


def verdict(norms: Norms) -> str | None:
    """Return what is wrong with the way down through the layers, or None.

    Judged are the medians of the lowest and the highest layer that trains. Layers of one model are
    of one size, so that their norms can be compared.
    """
    if len(norms) < 2:
        return None
    lowest, *_, highest = norms
    below, above = median(norms[lowest]), median(norms[highest])
    if below == above == 0 or not math.isfinite(below + above):
        return None  # nothing came through at all, or nothing can be said; the loss tells
    passed = number_of(highest - lowest, "layer", "layers")
    if below * TOLERATED < above:
        return (
            f"gradients vanish: the norm of layer {lowest} is {below:.1e}, {passed} above it is "
            f"{above:.1e}; the lower layers hardly learn"
        )
    if above * TOLERATED < below:
        return (
            f"gradients explode: the norm of layer {lowest} is {below:.1e}, {passed} above it is "
            f"{above:.1e}; clipping bounds the step, and all of it goes to the lower layers"
        )
    return None


def draw_gradient_flow(norms: Norms, folder: Path) -> list[Path]:
    """Draw the norms over the layers, for each third of the run, and return the files.

    Args:
        norms: See :func:`layer_norms`; nothing is drawn of less than two layers.
        folder: Where the pictures go.
    """
    if len(norms) < 2:
        return []
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    points = min(map(len, norms.values()))
    stretches = STRETCHES if points >= len(STRETCHES) else ("whole run",)
    for number, name in enumerate(stretches):
        shade = 0.35 + 0.65 * (number + 1) / len(stretches)
        medians = [median(_part(values, number, len(stretches))) for values in norms.values()]
        axes.plot(list(norms), medians, label=name, color="#1f77b4", alpha=shade, marker="o", ms=4)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer, from the input up")
    axes.set_ylabel("norm of the gradient, median")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    files = [folder / f"gradient_flow.{suffix}" for suffix in ("svg", "png")]
    for file in files:
        figure.savefig(file, dpi=150)
    return files


def _part(values: list[float], number: int, parts: int) -> list[float]:
    return values[len(values) * number // parts : len(values) * (number + 1) // parts]
