# SPDX-License-Identifier: Apache-2.0
"""Draw loss, learning rate and metrics over the steps of a run, as SVG and PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hftune.evaluation import shown_metrics

TRAINING = "#1f77b4"
EVALUATION = "#d62728"
JUDGED = "#ff9896"


def draw_curves(log: Sequence[Mapping[str, float]], folder: Path) -> list[Path]:
    """Draw the logged values and return the files: loss, learning_rate and metrics.

    Values that no line of the log has are left out.

    Args:
        log: The lines of ``log.jsonl``.
        folder: The folder of the pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    losses = {
        "training": ("loss", TRAINING),
        "validation": ("eval_loss", EVALUATION),
        "training rows, judged like validation": ("eval_train_loss", JUDGED),
    }
    files = _draw(log, losses, "loss (nats)", folder / "loss")
    rate = {"learning rate": ("learning_rate", TRAINING)}
    files += _draw(log, rate, "learning rate", folder / "learning_rate")
    gates = {"open gates": ("open_share", TRAINING)}
    files += _draw(log, gates, "expected share of open gates", folder / "gates", scale="log")
    ranks = {"rank budget": ("rank_budget", TRAINING)}
    files += _draw(log, ranks, "ranks of all matrices together", folder / "ranks")
    shares = {name: (f"eval_{name}", None) for name in shown_metrics("curves")}
    files += _draw(log, shares, "on the validation rows", folder / "metrics")
    return files


def _draw(
    log: Sequence[Mapping[str, float]],
    curves: Mapping[str, tuple[str, str | None]],
    ylabel: str,
    stem: Path,
    scale: str = "linear",
) -> list[Path]:
    points = {
        label: [(line["step"], line[key]) for line in log if key in line]
        for label, (key, _) in curves.items()
    }
    if not any(points.values()):
        return []
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for label, (_, colour) in curves.items():
        if points[label]:
            steps, values = zip(*points[label], strict=True)
            few = len(steps) < 20
            axes.plot(steps, values, label=label, color=colour, marker="o" if few else None, ms=4)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(ylabel)
    axes.set_yscale(scale)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(points) > 1:
        axes.legend(frameon=False)
    files = [stem.with_suffix(".svg"), stem.with_suffix(".png")]
    for file in files:
        figure.savefig(file, dpi=150)
    return files
