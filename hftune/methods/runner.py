# SPDX-License-Identifier: Apache-2.0
"""How a method is fitted by itself, when no Trainer runs.

``MethodRow.runner`` names a function ``(method, task, rows, context) -> Fitting``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class FitRows:
    """The rows that a method is fitted on.

    Attributes:
        examples: Selected training rows, one column a role.
        train: The same rows as the model takes them.
        validation: Held out rows as the model takes them, if there are any.
    """

    examples: Dataset
    train: Dataset
    validation: Dataset | None = None


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The results of a fit.

    Attributes:
        model: The fitted classifier; it can be saved and knows its ``metadata``.
        base_fingerprint: What it remembers of the base that it reads.
        tried: Each candidate of a cross-validation with its score.
        figures: Figures for ``metrics.json``.
    """

    model: Any
    base_fingerprint: dict[str, str] | None
    tried: list[dict[str, object]]
    figures: dict[str, object]


class Fitting(ABC):
    """A checked fit that lacks only its features.

    Attributes:
        options: All options of the method, with what the recipe left open.
    """

    options: Mapping[str, object]

    @abstractmethod
    def fit(self) -> Fitted:
        """Fit the method and measure it.

        Raises:
            HftuneError: The base model cannot be loaded.
            RunError: The rows cannot be fitted.
        """
