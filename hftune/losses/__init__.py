# SPDX-License-Identifier: Apache-2.0
"""Losses by name, each with a denominator that is known before the first forward pass.

A loss of one's own is written with ``from hftune.losses import Batch, Loss, aligned, forward``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hftune.core.registry import (
    ABOVE_ZERO,
    AT_LEAST_ZERO,
    FRACTION,
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    LossRow,
)

if TYPE_CHECKING:
    from hftune.losses.loss import Batch, LabelStats, Loss, aligned, counted, forward, targets

__all__ = [
    "LOSSES",
    "Batch",
    "LabelStats",
    "Loss",
    "aligned",
    "counted",
    "forward",
    "targets",
]

#: Ranges of the options of losses that weigh classes.
_WEIGHTED = {"beta": FRACTION, "logit_adjustment": ABOVE_ZERO}

LOSSES = {
    "cross_entropy": LossRow(
        target="hftune.losses.cross_entropy:CrossEntropy",
        ranges=_WEIGHTED,
        default=True,
        summary="Negative log likelihood, with class weights, smoothing and logit adjustment.",
        smooths=True,
        plain=True,
    ),
    "focal": LossRow(
        target="hftune.losses.focal:Focal",
        ranges={"beta": FRACTION, "gamma": AT_LEAST_ZERO},
        summary="Cross-entropy in which what the model is sure of counts less.",
        problem_types=(SINGLE_LABEL, MULTI_LABEL),
    ),
    "r_drop": LossRow(
        target="hftune.losses.r_drop:RDrop",
        ranges={**_WEIGHTED, "alpha": ABOVE_ZERO},
        summary="Cross-entropy of two passes under dropout, and the divergence between them.",
        smooths=True,
        own_passes=True,
    ),
    "supervised_contrastive": LossRow(
        target="hftune.losses.supervised_contrastive:SupervisedContrastive",
        ranges={
            **_WEIGHTED,
            "contrastive_weight": {"exclusiveMinimum": 0, "maximum": 1},
            "temperature": ABOVE_ZERO,
        },
        summary="Cross-entropy, and rows of one class in a micro-batch drawn together.",
        labels=("class",),
        smooths=True,
        compares_rows=True,
        own_passes=True,
    ),
    "mixup": LossRow(
        target="hftune.losses.mixup:Mixup",
        ranges={**_WEIGHTED, "alpha": ABOVE_ZERO},
        summary="Cross-entropy of two rows of a micro-batch mixed into one.",
        labels=("class",),
        smooths=True,
        compares_rows=True,
        own_passes=True,
        mixes_inputs=True,
        sharded=False,
    ),
    "ordinal": LossRow(
        target="hftune.losses.ordinal:Ordinal",
        ranges={"beta": FRACTION},
        summary="Classes with an order: far off costs more than near.",
        labels=("class",),
    ),
    "bce_with_logits": LossRow(
        target="hftune.losses.bce_with_logits:BceWithLogits",
        summary="Binary cross-entropy of each label on its own, with weights of the positives.",
        labels=("class",),
        problem_types=(MULTI_LABEL,),
        plain=True,
    ),
    "mse": LossRow(
        target="hftune.losses.regression:MeanSquaredError",
        summary="Mean squared error of one number a text.",
        labels=("class",),
        problem_types=(REGRESSION,),
        plain=True,
    ),
    "mae": LossRow(
        target="hftune.losses.regression:MeanAbsoluteError",
        summary="Mean absolute error: the median, which wild targets hardly move.",
        labels=("class",),
        problem_types=(REGRESSION,),
    ),
    "huber": LossRow(
        target="hftune.losses.regression:Huber",
        ranges={"delta": ABOVE_ZERO},
        summary="Squared error up to delta, absolute error beyond it.",
        labels=("class",),
        problem_types=(REGRESSION,),
    ),
}


def __getattr__(name: str) -> Any:
    """Import a name of the contract when it is asked for, since that imports torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("hftune.losses.loss"), name)
