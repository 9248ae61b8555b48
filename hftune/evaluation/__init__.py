# SPDX-License-Identifier: Apache-2.0
"""Metrics, and the table of their names."""

from hftune.core.task_rows import MetricPlace, MetricRow

EVERYWHERE: tuple[MetricPlace, ...] = ("progress", "summary", "card")

#: Name of a metric -> facts about it, in the order in which they are shown.
METRICS = {
    "loss": MetricRow(higher_is_better=False, shown=EVERYWHERE),
    "gap": MetricRow(higher_is_better=False, shown=("summary",)),
    "perplexity": MetricRow(higher_is_better=False, shown=EVERYWHERE),
    "accuracy": MetricRow(shown=(*EVERYWHERE, "curves")),
    "f1": MetricRow(shown=(*EVERYWHERE, "curves")),
    "f1_macro": MetricRow(shown=(*EVERYWHERE, "curves")),
    "f1_weighted": MetricRow(shown=("summary", "card", "curves")),
    "mcc": MetricRow(shown=("summary", "card", "curves")),
    "r2": MetricRow(shown=EVERYWHERE),
    "spearman": MetricRow(shown=("summary", "card")),
    "bleu": MetricRow(shown=EVERYWHERE),
    "chrf": MetricRow(shown=("summary", "card")),
    "rouge1": MetricRow(shown=("card",)),
    "rouge2": MetricRow(shown=("card",)),
    "rougeL": MetricRow(shown=EVERYWHERE),
    "exact_match": MetricRow(shown=EVERYWHERE),
    "average_precision": MetricRow(),
    "f1_micro": MetricRow(),
    "f1_samples": MetricRow(),
    "hamming_loss": MetricRow(higher_is_better=False),
    "mae": MetricRow(higher_is_better=False),
    "mse": MetricRow(higher_is_better=False),
    "pearson": MetricRow(),
    "precision": MetricRow(),
    "precision_macro": MetricRow(),
    "precision_micro": MetricRow(),
    "precision_weighted": MetricRow(),
    "recall": MetricRow(),
    "recall_macro": MetricRow(),
    "recall_micro": MetricRow(),
    "recall_weighted": MetricRow(),
    "rmse": MetricRow(higher_is_better=False),
    "roc_auc": MetricRow(),
}


def shown_metrics(place: MetricPlace) -> list[str]:
    """Return the names of the metrics that a place shows, in order.

    Example:
        >>> shown_metrics("progress")[:3]
        ['loss', 'perplexity', 'accuracy']
    """
    return [name for name, row in METRICS.items() if place in row.shown]
