# SPDX-License-Identifier: Apache-2.0
"""Draw a learning-rate range test: the loss over the rate, the suggestion and the limit."""

from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure

LOSS = "#1f77b4"
SUGGESTION = "#2ca02c"
LIMIT = "#d62728"
#: The picture ends at this multiple of the first loss.
SHOWN = 1.5


class Curve(Protocol):
    """Values of a range test; see :class:`hftune.optimization.lr_sweep_reading.RangeTest`."""

    @property
    def rates(self) -> tuple[float, ...]:
        """Learning rate of each step."""

    @property
    def losses(self) -> tuple[float, ...]:
        """Loss of each step."""

    @property
    def smoothed(self) -> tuple[float, ...]:
        """Smoothed loss of each step."""

    @property
    def suggestion(self) -> float | None:
        """Rate at which the loss falls fastest; None if it never falls."""

    @property
    def lowest(self) -> float:
        """Rate from which on the loss no longer falls."""


def draw_range_test(curve: Curve, path: Path) -> None:
    """Draw the loss of each batch and the smoothed loss over the rate."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.rates, curve.losses, color=LOSS, alpha=0.3, lw=1, label="loss of each batch")
    axes.plot(curve.rates, curve.smoothed, color=LOSS, label="smoothed")
    if curve.suggestion is not None:
        axes.axvline(
            curve.suggestion, color=SUGGESTION, label=f"falls fastest: {curve.suggestion:.1e}"
        )
    axes.axvline(curve.lowest, color=LIMIT, ls="--", label=f"falls no more: {curve.lowest:.1e}")
    low, high = min(curve.losses), max(curve.losses)
    top = min(high, max(SHOWN * curve.smoothed[0], low))
    margin = 0.05 * (top - low) or 1.0
    axes.set_ylim(low - margin, top + margin)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss of the next batch (nats)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
