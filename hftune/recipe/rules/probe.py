# SPDX-License-Identifier: Apache-2.0
"""Rules of the probe, for which no Trainer runs."""

from typing import Any

from hftune.hub.clean import PUSH_FIELDS
from hftune.methods import FITTED
from hftune.recipe.resolve import FITTED_TRAINING
from hftune.recipe.rules.rule import Rule, Sections, installed, option
from hftune.regularization.section import RegularizationSection

NO_TRAINER = f"no Trainer runs for a probe, which reads {', '.join(FITTED_TRAINING)} alone"


def _fitted(sections: Sections) -> bool:
    return sections["method"].name in FITTED


def _option(sections: Sections, name: str) -> Any:
    return option(sections, name) if _fitted(sections) else None


def training_without_trainer(sections: Sections) -> list[str]:
    """Return the keys of ``training`` that a probe would not read."""
    if not _fitted(sections):
        return []
    return sorted(sections["training"].keys() - {*FITTED_TRAINING, *PUSH_FIELDS})


PROBE_RULES = (
    Rule(
        "method.name",
        "a probe is saved by skops: pip install 'hftune[probe]'",
        lambda s: _fitted(s) and not installed("skops"),
    ),
    Rule(
        "method.balance",
        "smote needs imbalanced-learn: pip install 'hftune[probe]'",
        lambda s: _option(s, "balance") == "smote" and not installed("imblearn"),
    ),
    Rule(
        "method.balance_kwargs",
        "they are those of balance: smote",
        lambda s: bool(_option(s, "balance_kwargs")) and _option(s, "balance") != "smote",
    ),
    Rule(
        "method.feature_selection_kwargs",
        "there is no method.feature_selection that takes them",
        lambda s: (
            bool(_option(s, "feature_selection_kwargs")) and not _option(s, "feature_selection")
        ),
    ),
    Rule(
        "loss",
        "a probe's classifier has a loss of its own; its weights are method.balance",
        lambda s: _fitted(s) and s["loss"] is not None,
    ),
    Rule(
        "evaluation.prior",
        "a probe's classifier does not tell what shares it assumes",
        lambda s: _fitted(s) and s["evaluation"].prior is not None,
    ),
    Rule(
        "evaluation.gap",
        "no Trainer runs for a probe; method.cv judges folds that took no part",
        lambda s: _fitted(s) and s["evaluation"].gap,
    ),
    Rule(
        "model.classifier_pooling",
        "a probe has no head in the model: say method.pooling",
        lambda s: _fitted(s) and s["model"].classifier_pooling != "cls",
    ),
    Rule(
        "regularization",
        "no Trainer runs for a probe; method.classifier_kwargs takes C, alpha and their like",
        lambda s: _fitted(s) and s["regularization"] != RegularizationSection(),
    ),
    Rule(
        "data.streaming",
        "a probe is fitted on the features of all rows at once",
        lambda s: _fitted(s) and s["data"].streaming,
    ),
)
