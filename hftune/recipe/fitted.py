# SPDX-License-Identifier: Apache-2.0
"""What a recipe cannot say where a classifier is fitted on features and no Trainer runs."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from hftune.hub.clean import PUSH_FIELDS
from hftune.methods import FITTED
from hftune.recipe.resolve import FITTED_TRAINING

Sections = dict[str, Any]
NO_TRAINER = f"no Trainer runs for a probe, which reads {', '.join(FITTED_TRAINING)} alone"


def is_fitted(sections: Sections) -> bool:
    """Tell whether no Trainer runs."""
    return sections["method"].name in FITTED


def without_effect(sections: Sections) -> list[str]:
    """Return the keys of ``training`` that only a Trainer would read."""
    read = {*FITTED_TRAINING, *PUSH_FIELDS}
    return [key for key in sections["training"] if is_fitted(sections) and key not in read]


def _option(sections: Sections, name: str) -> Any:
    return sections["method"].options.get(name) if is_fitted(sections) else None


def _lacks(package: str) -> bool:
    return find_spec(package) is None


#: Key, why a recipe is refused, whether it is.
FITTED_RULES: tuple[tuple[str, str, Callable[[Sections], bool]], ...] = (
    (
        "method.name",
        "a probe is saved by skops: pip install 'hftune[probe]'",
        lambda s: is_fitted(s) and _lacks("skops"),
    ),
    (
        "method.balance",
        "smote needs imbalanced-learn: pip install 'hftune[probe]'",
        lambda s: _option(s, "balance") == "smote" and _lacks("imblearn"),
    ),
    (
        "method.balance_kwargs",
        "they are those of balance: smote",
        lambda s: bool(_option(s, "balance_kwargs")) and _option(s, "balance") != "smote",
    ),
    (
        "method.feature_selection_kwargs",
        "there is no method.feature_selection that takes them",
        lambda s: (
            bool(_option(s, "feature_selection_kwargs")) and not _option(s, "feature_selection")
        ),
    ),
    (
        "loss",
        "a probe's classifier has a loss of its own; its weights are method.balance",
        lambda s: is_fitted(s) and s["loss"] is not None,
    ),
    (
        "model.classifier_pooling",
        "a probe has no head in the model: say method.pooling",
        lambda s: is_fitted(s) and s["model"].classifier_pooling != "cls",
    ),
    (
        "data.streaming",
        "a probe is fitted on the features of all rows at once",
        lambda s: is_fitted(s) and s["data"].streaming,
    ),
)
