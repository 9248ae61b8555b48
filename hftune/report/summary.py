# SPDX-License-Identifier: Apache-2.0
"""Print tables in the terminal: results of a run, metrics by class, the next command."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich.table import Table
from rich.text import Text

from hftune.core.console import console, say
from hftune.evaluation import shown_metrics

SHOWN_SAMPLES = 2
SHOWN_CHARACTERS = 300


def print_summary(folder: Path, metrics: Mapping[str, Any], example_file: str) -> None:
    """Print the end of a training run.

    Args:
        folder: The run folder.
        metrics: ``metrics.json``.
        example_file: Name of a file with new rows, to predict next.
    """
    print_metrics(metrics)
    trainable, every = metrics["trainable_parameters"], metrics["parameters"]
    table = Table(show_header=False, box=None)
    table.add_row("trained parameters", f"{trainable:,} of {every:,} ({trainable / every:.2%})")
    if "sparsity" in metrics:
        table.add_row(
            "pruned",
            f"{metrics['pruned_weights']:,} of {metrics['prunable_weights']:,} "
            f"prunable weights ({metrics['sparsity']:.1%})",
        )
        table.add_row(
            "saved parameters",
            f"{metrics['saved_parameters']:,}, {metrics['saved_zeros']:,} of them zero",
        )
    table.add_row("optimizer steps", _steps(metrics))
    table.add_row("training time", f"{metrics['train_runtime']:.0f} s")
    table.add_row("real tokens per second", f"{metrics['train_tokens_per_second']:,.0f}")
    spared = ", which the layers were spared" if metrics["padding_free"] else ""
    table.add_row("padding", f"{metrics['train_padding_share']:.0%} of the batches{spared}")
    table.add_row("peak memory", f"{metrics['peak_memory_mib']:,} MiB")
    if "peak_gpu_memory_mib" in metrics:
        table.add_row("peak GPU memory", f"{metrics['peak_gpu_memory_mib']:,} MiB")
    console().print(table)
    say(f"model: {folder / 'model'}   curves: {folder / 'plots'}")
    _print_next(folder, example_file)


def print_fit(folder: Path, metrics: Mapping[str, Any], example_file: str) -> None:
    """Print the end of a run that fitted a probe.

    Args:
        folder: The run folder.
        metrics: ``metrics.json``.
        example_file: Name of a file with new rows, to predict next.
    """
    print_metrics(metrics)
    table = Table(show_header=False, box=None)
    rows, embedded = metrics["train_samples"], metrics["embedded_samples"]
    source = f"{embedded:,} rows embedded" if embedded else "out of the cache"
    table.add_row("features", f"{metrics['features']:,} of {rows:,} training rows; {source}")
    for name, value in metrics.get("best_params", {}).items():
        table.add_row(f"chosen {name}", str(value))
    table.add_row("embedding time", f"{metrics['embed_runtime']:.1f} s")
    table.add_row("fitting time", f"{metrics['fit_runtime']:.1f} s")
    table.add_row("peak memory", f"{metrics['peak_memory_mib']:,} MiB")
    console().print(table)
    say(f"model: {folder / 'model'}")
    _print_next(folder, example_file)


def _steps(metrics: Mapping[str, Any]) -> str:
    steps, planned = metrics["train_steps"], metrics["planned_steps"]
    early = f" of {planned:,}, stopped early" if steps < planned else ""
    best = metrics.get("best_step", steps)
    return f"{steps:,}{early}" + (f"; weights of step {best:,}" if best < steps else "")


def _print_next(folder: Path, example_file: str) -> None:
    say(f"next:  hftune predict {folder} {example_file} predictions.jsonl")


def print_samples(samples: Sequence[Mapping[str, str]]) -> None:
    """Print the first rows with the texts that the model generated; see ``samples.jsonl``."""
    for row in samples[:SHOWN_SAMPLES]:
        table = Table(show_header=False, box=None)
        for name, text in row.items():
            table.add_row(Text(name, style="dim"), Text(shorten(text, SHOWN_CHARACTERS)))
        console().print(table)


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print the evaluation metrics, with a table of the classes if there are any."""
    per_class: Mapping[str, Mapping[str, float]] = metrics.get("eval_per_class", {})
    if per_class:
        decided = any("threshold" in row for row in per_class.values())
        last = ["threshold"] if decided else []
        table = Table("label", "precision", "recall", "F1", "support", *last, box=None)
        for column in table.columns[1:]:
            column.justify = "right"
        for name, row in per_class.items():
            scores = (f"{row[key]:.3f}" for key in ("precision", "recall", "f1"))
            last = [f"{row['threshold']:.3f}"] if decided else []
            table.add_row(name, *scores, f"{row['support']:.0f}", *last)
        console().print(table)
    names = [name for name in shown_metrics("summary") if f"eval_{name}" in metrics]
    shown = [(name, metrics[f"eval_{name}"]) for name in names]
    if shown:
        say("   ".join(f"{name} {value:.4f}" for name, value in shown))
