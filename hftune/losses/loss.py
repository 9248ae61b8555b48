# SPDX-License-Identifier: Apache-2.0
"""The loss contract: a sum, and the number it is divided by, known before the forward pass.

A loss may be of several parts, each a sum with a number of its own. The trainer adds the
denominators of a whole accumulation group over all ranks and divides once. So eight rows give the
same gradient as 1 x 8, 2 x 4 or 8 x 1 micro-batches, on one process or two.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from hftune.core.cost import StepCost
from hftune.core.errors import HftuneError
from hftune.core.task_rows import PROBLEM_TYPES

Batch = Mapping[str, Tensor]

#: The number of a training row in its batch, where a teacher must know it; -1 for a blank row.
ROW = "row"


@dataclass(frozen=True, kw_only=True)
class LabelStats:
    """Statistics of the training labels that a loss may use.

    Attributes:
        classes: Name of each class, by id; a language model's classes are its tokens.
        counts: Training labels of each class, by id; where rows are drawn, those of an epoch on
            average.
        rows: Training rows.
        label_smoothing: ``training.label_smoothing_factor``, in [0, 1).
        causal: Whether position ``t`` predicts label ``t + 1``, as in causal language models.
        listed: Whether the recipe lists the classes, and so says their order.
        problem_type: ``config.problem_type`` of a classifier.
    """

    classes: Sequence[str]
    counts: Sequence[float]
    rows: int = 0
    label_smoothing: float = 0.0
    causal: bool = False
    listed: bool = False
    problem_type: str | None = None

    @property
    def several(self) -> bool:
        """Whether a row may have several labels."""
        return self.problem_type is not None and PROBLEM_TYPES[self.problem_type].several

    @property
    def numbers(self) -> bool:
        """Whether labels are numbers instead of classes."""
        return self.problem_type is not None and PROBLEM_TYPES[self.problem_type].numbers


class Loss(ABC):
    """A loss as a sum over the labels that count.

    Attributes:
        causal: Whether position ``t`` predicts label ``t + 1``; set by :meth:`fit`.
    """

    causal = False

    def fit(self, stats: LabelStats) -> None:
        """Take from the labels the numbers that the options need; call ``super().fit`` first."""
        self.causal = stats.causal

    def check(self, model: nn.Module) -> None:
        """Raise :class:`HftuneError` if the loss cannot work with a model, seen without weights."""

    def prior(self) -> Tensor | None:
        """Return the class shares that the model's probabilities will assume, shape ``(C,)``.

        Those of the training rows, as far as the loss does not shift them; None where that cannot
        be known.
        """
        return None

    def layers(self) -> nn.Module | None:
        """Return layers that train beside the model and are thrown away; None for nothing."""
        return None

    def step_cost(self) -> StepCost:
        """Return the cost of :meth:`total` and its gradient, once the loss is fitted.

        The base class counts one pass, whose hidden states get a gradient, and for all positions
        logits, their logarithms and their gradient. A loss that does nothing else needs no more.
        """
        return StepCost(
            live_passes=1, forward_passes=1, logits="whole", logit_copies=3, hidden_copies=1
        )

    def callbacks(self, total_steps: int) -> list[TrainerCallback]:
        """Return the callbacks that the loss needs in a run of ``total_steps`` optimizer steps."""
        return []

    @abstractmethod
    def denominator(self, batch: Batch) -> Tensor:
        """Return the divisor of the sum, a float that depends only on the labels.

        Shape ``()``; ``(parts,)`` where :meth:`total` returns so many sums.
        """

    @abstractmethod
    def total(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """Run the model and return the summed loss, shape ``()``, and the model's outputs.

        A loss of several parts returns their sums, shape ``(parts,)``.
        """


def refuse_smoothing(stats: LabelStats, why: str) -> None:
    """Raise :class:`HftuneError` if ``training.label_smoothing_factor`` is given."""
    if stats.label_smoothing:
        raise HftuneError(f"training.label_smoothing_factor goes with {why}")


def refuse_encoder_decoder(model: nn.Module, why: str) -> None:
    """Raise :class:`HftuneError` if a model has an encoder and a decoder."""
    config: Any = model.config
    if config.is_encoder_decoder:
        raise HftuneError(f"loss: {why}; {config.model_type} is both")


def forward(model: nn.Module, inputs: Batch) -> Any:
    """Run the model without its labels, so that it computes no loss of its own."""
    return model(**{key: value for key, value in inputs.items() if key != "labels"})


def counted(labels: Tensor) -> Tensor:
    """Return where there is a label: not -100 among ids, not NaN among numbers; bool."""
    return labels.isnan().logical_not() if labels.is_floating_point() else labels.ne(-100)


def targets(labels: Tensor, *, causal: bool) -> Tensor:
    """Return the labels that are predicted: a causal model never predicts the first position.

    Args:
        labels: ``(B,)`` of a classifier, ``(B, T)`` of tokens.
        causal: Whether position ``t`` predicts label ``t + 1``.
    """
    return labels[:, 1:] if causal else labels


def aligned(logits: Tensor, labels: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Return logits ``(N, C)`` and the labels ``(N,)`` that they predict.

    Args:
        logits: Of a classifier ``(B, C)``; of tokens ``(B, virtual tokens + T, C)``.
        labels: Of a classifier ``(B,)``; of tokens ``(B, T)``; -100 where nothing is trained.
        causal: Whether position ``t`` predicts label ``t + 1``.
    """
    kept = targets(labels, causal=causal)
    if labels.dim() == 2:
        start = logits.shape[1] - labels.shape[1]
        logits = logits[:, start : start + kept.shape[1]]
    here = counted(kept)  # select first: the softmax of the other positions is never needed
    logits = logits[here]
    return in_full(logits), kept[here]


def in_full(logits: Tensor) -> Tensor:
    """Return logits in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
