# SPDX-License-Identifier: Apache-2.0
"""Rules of the probe, for which no Trainer runs."""

from typing import Any

from hftune.core.rules import RecipeView, Rule, installed, option
from hftune.data.section import DataSection
from hftune.evaluation.section import EvaluationSection
from hftune.models.section import ModelSection
from hftune.recipe.training_fields import FITTED_TRAINING, PUSH_FIELDS

NO_TRAINER = f"no Trainer runs for a probe, which reads {', '.join(FITTED_TRAINING)} alone"


def _fitted(view: RecipeView) -> bool:
    return view.method_row.fitted


def _option(view: RecipeView, name: str) -> Any:
    return option(view, name) if _fitted(view) else None


def training_without_trainer(view: RecipeView) -> list[str]:
    """Return the keys of ``training`` that a probe would not read."""
    if not _fitted(view):
        return []
    return sorted(view.training.keys() - {*FITTED_TRAINING, *PUSH_FIELDS})


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
        lambda s: _fitted(s) and s.loss is not None,
    ),
    Rule(
        "evaluation.prior",
        "a probe's classifier does not tell what shares it assumes",
        lambda s: _fitted(s) and s[EvaluationSection].prior is not None,
    ),
    Rule(
        "evaluation.gap",
        "no Trainer runs for a probe; method.cv judges folds that took no part",
        lambda s: _fitted(s) and s[EvaluationSection].gap,
    ),
    Rule(
        "model.classifier_pooling",
        "a probe has no head in the model: say method.pooling",
        lambda s: _fitted(s) and s[ModelSection].classifier_pooling != "cls",
    ),
    Rule(
        "data.streaming",
        "a probe is fitted on the features of all rows at once",
        lambda s: _fitted(s) and s[DataSection].streaming,
    ),
)
