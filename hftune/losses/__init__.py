# SPDX-License-Identifier: Apache-2.0
"""Losses by name, each with a denominator that is known before the first forward pass."""

from dataclasses import dataclass

from hftune.core.rows import Row


@dataclass(frozen=True, kw_only=True)
class LossRow(Row):
    """A loss.

    Attributes:
        problem_types: What ``config.problem_type`` of a classifier it goes with.
    """

    problem_types: tuple[str, ...] = ()


LOSSES = {
    "cross_entropy": LossRow(
        target="hftune.losses.cross_entropy:CrossEntropy",
        summary="Negative log likelihood, with class weights and label smoothing.",
        problem_types=("single_label_classification",),
    ),
    "bce_with_logits": LossRow(
        target="hftune.losses.bce_with_logits:BceWithLogits",
        summary="Binary cross-entropy of each label on its own, with weights of the positives.",
        tasks=("text-classification",),
        problem_types=("multi_label_classification",),
    ),
    "mse": LossRow(
        target="hftune.losses.mse:MeanSquaredError",
        summary="Mean squared error of one number a text.",
        tasks=("text-classification",),
        problem_types=("regression",),
    ),
}
