# SPDX-License-Identifier: Apache-2.0
"""Draw the gradient norms of the layers, and tell if gradients vanish or explode."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hftune.core.console import number_of

PREFIX = "grad_norm/layer_"
#: Largest ratio between the norms of the lowest and the highest layer that is no problem.
TOLERATED = 1000.0
PERIODS = ("first third", "second third", "last third")

#: Layer -> norms at the logged steps, from the lowest layer to the highest.
Norms = dict[int, list[float]]


def layer_norms(log: Sequence[Mapping[str, float]]) -> Norms:
    """Return the norms that ``training.log_grad_norms: layers`` logged.

    Example:
        >>> layer_norms([{"step": 1, "grad_norm/layer_1": 0.5, "grad_norm/layer_0": 0.25}])
        {0: [0.25], 1: [0.5]}
    """
    found: Norms = {}
    for line in log:
        for key, value in line.items():
            if key.startswith(PREFIX):
                found.setdefault(int(key.removeprefix(PREFIX)), []).append(float(value))
    return dict(sorted(found.items()))


def verdict(norms: Norms) -> str | None:
    """Return a sentence if gradients vanish or explode on their way down the layers; else None.

    The test compares the medians of the lowest and the highest layer that trains. Layers of one
    model have equal sizes, so their norms can be compared.

    Example:
        >>> verdict({0: [1e-6], 1: [1e-3], 2: [1.0]})[:52]
        'gradients vanish: the norm of layer 0 is 1.0e-06, 2 '
        >>> verdict({0: [0.5], 1: [1.0]}) is None
        True
    """
    if len(norms) < 2:
        return None
    lowest, *_, highest = norms
    below, above = median(norms[lowest]), median(norms[highest])
    if below == above == 0 or not math.isfinite(below + above):
        return None  # no gradient arrived at all, or a norm is not finite: the loss shows that
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
        norms: See :func:`layer_norms`. With fewer than two layers no picture is drawn.
        folder: The folder of the pictures.
    """
    if len(norms) < 2:
        return []
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    points = min(map(len, norms.values()))
    periods = PERIODS if points >= len(PERIODS) else ("whole run",)
    for number, name in enumerate(periods):
        shade = 0.35 + 0.65 * (number + 1) / len(periods)
        medians = [median(_share(values, number, len(periods))) for values in norms.values()]
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


def _share(values: list[float], number: int, parts: int) -> list[float]:
    return values[len(values) * number // parts : len(values) * (number + 1) // parts]
