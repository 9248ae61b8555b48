# SPDX-License-Identifier: Apache-2.0
"""Metrics of the ``evaluate`` library, in addition to the task's own.

A metric with a name or a path is a script that runs on this machine. So a recipe cannot load one by
itself: the command line asks for ``--trust-metrics``, and Python code passes ``metrics``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Protocol

import numpy as np

from hftune.core.errors import HftuneError, first_line


class EvaluateMetric(Protocol):
    """The part of ``evaluate.Metric`` that hftune uses."""

    @property
    def name(self) -> str:
        """Name of the metric."""

    def compute(
        self, *, predictions: Sequence[object], references: Sequence[object], **options: object
    ) -> Mapping[str, object] | None:
        """Return the figures of the metric by name."""


#: A name, a path, ``{name: ..., options of compute}``, or an ``evaluate.Metric``.
Metric = str | Mapping[str, object] | EvaluateMetric


@dataclass(frozen=True)
class ExternalMetric:
    """A metric of ``evaluate`` and its options.

    Attributes:
        name: Name of its figures.
        module: An ``evaluate.Metric``, or several combined.
        options: Options of its ``compute``.

    Example:
        >>> class Share:
        ...     name = "share"
        ...     def compute(self, *, predictions, references):
        ...         return {"share": 0.5, "note": "not a number"}
        >>> ExternalMetric("share", Share()).compute([1, 0], [1, 1])
        {'share': 0.5}
    """

    name: str
    module: EvaluateMetric
    options: dict[str, object] = field(default_factory=dict)

    def compute(
        self, predictions: Sequence[object], references: Sequence[object]
    ) -> dict[str, float]:
        """Return the results that are numbers, as ``name``, or ``name_key`` for other keys.

        Raises:
            HftuneError: The metric does not take what the task predicts.
        """
        try:
            result = self.module.compute(
                predictions=predictions, references=references, **self.options
            )
        except (ValueError, TypeError, KeyError) as error:
            raise HftuneError(f"evaluation.metrics: {self.name}: {error}") from error
        return {
            key if key == self.name else f"{self.name}_{key}": float(value)
            for key, value in (result or {}).items()
            if isinstance(value, int | float | np.number)
        }


def load_metrics(given: Sequence[Metric], own: Sequence[str]) -> list[ExternalMetric]:
    """Load metrics from the Hub or from local scripts, before the model is loaded.

    Args:
        given: Names, paths, mappings with ``name`` and options, or ``evaluate.Metric`` objects.
        own: Names of the task's own metrics; no other metric may use them.

    Raises:
        HftuneError: ``evaluate`` is not installed, a metric cannot be reached, or a name is taken.
    """
    if given and find_spec("evaluate") is None:
        raise HftuneError(
            "evaluation.metrics: evaluate is not installed", hint="pip install 'hftune[evaluate]'"
        )
    loaded = [_load(metric) for metric in given]
    names = [metric.name for metric in loaded]
    for name in names:
        if name in own:
            raise HftuneError(f"evaluation.metrics: {name} is measured anyway", hint="leave it out")
        if names.count(name) > 1:
            raise HftuneError(f"evaluation.metrics: {name} stands twice")
    return loaded


def _load(given: Metric) -> ExternalMetric:
    import evaluate

    if not isinstance(given, str | Mapping):
        return ExternalMetric(given.name, given)
    options: dict[str, object] = {"name": given} if isinstance(given, str) else dict(given)
    path = options.pop("name", None)
    if not isinstance(path, str):
        raise HftuneError(f"evaluation.metrics: a name is missing in {given}")
    try:
        module = evaluate.load(path)
    except (OSError, ImportError, ValueError) as error:
        raise HftuneError(
            f"evaluation.metrics: {path}: {first_line(error)}",
            hint="name a metric of the Hub that can be reached, the path of a metric script, "
            "or hand over an evaluate.Metric: hftune.train(recipe, metrics=[...])",
        ) from error
    return ExternalMetric(module.name, module, options)
