# SPDX-License-Identifier: Apache-2.0
"""Facts about the probe and rules about its options; it is fitted, and no Trainer runs."""

from hftune.core.registry import MethodRow
from hftune.core.rules import Rule, installed, option
from hftune.data.section import DataSection
from hftune.evaluation.section import EvaluationSection
from hftune.models.section import ModelSection

PROBE = MethodRow(
    target="hftune.methods.probe.method:Probe",
    options="hftune.methods.probe.method:ProbeConfig",
    summary="A classical classifier is fitted on the features of the frozen trunk.",
    labels=("class",),
    saves="classifier",
    runner="hftune.methods.probe.fit:prepare_fit",
    trains="features",
    ranges={"cv": {"minimum": 2}},
    rules=(
        Rule(
            "method.name",
            "a probe is saved by skops: pip install 'hftune[probe]'",
            lambda s: not installed("skops"),
        ),
        Rule(
            "method.balance",
            "smote needs imbalanced-learn: pip install 'hftune[probe]'",
            lambda s: option(s, "balance") == "smote" and not installed("imblearn"),
        ),
        Rule(
            "method.balance_kwargs",
            "they are those of balance: smote",
            lambda s: bool(option(s, "balance_kwargs")) and option(s, "balance") != "smote",
        ),
        Rule(
            "method.feature_selection_kwargs",
            "there is no method.feature_selection that takes them",
            lambda s: (
                bool(option(s, "feature_selection_kwargs")) and not option(s, "feature_selection")
            ),
        ),
        Rule(
            "loss",
            "a probe's classifier has a loss of its own; its weights are method.balance",
            lambda s: s.loss is not None,
        ),
        Rule(
            "evaluation.prior",
            "a probe's classifier does not tell what shares it assumes",
            lambda s: s[EvaluationSection].prior is not None,
        ),
        Rule(
            "evaluation.gap",
            "no Trainer runs for a probe; method.cv judges folds that took no part",
            lambda s: s[EvaluationSection].gap,
        ),
        Rule(
            "model.classifier_pooling",
            "a probe has no head in the model: say method.pooling",
            lambda s: s[ModelSection].classifier_pooling != "cls",
        ),
        Rule(
            "data.streaming",
            "a probe is fitted on the features of all rows at once",
            lambda s: s[DataSection].streaming,
        ),
    ),
    no_merge="is no part of the network",
    no_images="pools the tokens of a text",
)
