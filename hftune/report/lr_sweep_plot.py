# SPDX-License-Identifier: Apache-2.0
"""The picture of a range test: the loss over the rate, and what is read from it."""

from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure

LOSS = "#1f77b4"
SUGGESTION = "#2ca02c"
LIMIT = "#d62728"
#: Above so many times the first loss the picture is cut off.
SHOWN = 1.5


class Curve(Protocol):
    """What is drawn; see :class:`hftune.optimization.lr_sweep_reading.RangeTest`."""

    @property
    def rates(self) -> tuple[float, ...]:
        """By step."""

    @property
    def losses(self) -> tuple[float, ...]:
        """By step."""

    @property
    def smoothed(self) -> tuple[float, ...]:
        """By step."""

    @property
    def suggestion(self) -> float | None:
        """Where the loss falls fastest."""

    @property
    def lowest(self) -> float:
        """Where it falls no more."""


def draw_range_test(curve: Curve, path: Path) -> None:
    """Draw losses and their smooth course over the rate."""
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
