# SPDX-License-Identifier: Apache-2.0
"""The cost of one training step, to which each technique of a run adds its share.

A loss, a method, an optimizer, regularizers and teachers each return a :class:`StepCost`. Their sum
is the cost of the step. The memory estimate multiplies it by the sizes of the model and of the
batch, so it knows no technique by name.
"""

from dataclasses import dataclass, replace
from typing import Literal

Logits = Literal["none", "chunked", "whole"]
#: From the least memory to the most.
LOGITS: tuple[Logits, ...] = ("none", "chunked", "whole")


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Cost of one training step. The default is no cost, and costs can be added.

    Attributes:
        live_passes: Passes through the model whose activations exist at the same time.
        forward_passes: Passes through a model of about this size, for the time that a step takes.
        batch_factor: Examples of one pass, divided by the examples of the batch; factors multiply.
        logits: How many logits of a language model exist at once: ``none``, a ``chunked`` few, or
            those of the ``whole`` batch.
        logit_copies: Tensors of the size of these logits: the logits, the intermediate results
            of the loss, and the gradient of the logits.
        hidden_copies: Tensors of the size of one layer's hidden states, in addition to the
            activations.
        score_copies: Tensors of the size of one layer's attention scores, in addition to the
            activations.
        gradient_copies: Tensors of the size of the gradient that exist with it before the weights
            move; -1 if only one weight at a time has a gradient.
        bytes_per_weight: Bytes for each weight that trains, during the whole run.
        other_weights: Bytes of other weights, such as a teacher's, during the whole step.
        extra_bytes: Other bytes that the backward pass needs, and frees.

    Example:
        >>> loss = StepCost(live_passes=1, forward_passes=1, logits="chunked", logit_copies=3)
        >>> teacher = StepCost(forward_passes=1, logits="whole", other_weights=4096)
        >>> step = loss + teacher
        >>> step.live_passes, step.forward_passes, step.logits, step.other_weights
        (1, 2, 'whole', 4096)
        >>> step + StepCost() == step
        True
    """

    live_passes: float = 0
    forward_passes: float = 0
    batch_factor: float = 1
    logits: Logits = "none"
    logit_copies: float = 0
    hidden_copies: float = 0
    score_copies: float = 0
    gradient_copies: float = 0
    bytes_per_weight: float = 0
    other_weights: int = 0
    extra_bytes: int = 0

    def __add__(self, other: "StepCost") -> "StepCost":
        return StepCost(
            live_passes=self.live_passes + other.live_passes,
            forward_passes=self.forward_passes + other.forward_passes,
            batch_factor=self.batch_factor * other.batch_factor,
            logits=max(self.logits, other.logits, key=LOGITS.index),
            logit_copies=self.logit_copies + other.logit_copies,
            hidden_copies=self.hidden_copies + other.hidden_copies,
            score_copies=self.score_copies + other.score_copies,
            gradient_copies=self.gradient_copies + other.gradient_copies,
            bytes_per_weight=self.bytes_per_weight + other.bytes_per_weight,
            other_weights=self.other_weights + other.other_weights,
            extra_bytes=self.extra_bytes + other.extra_bytes,
        )

    @property
    def runs(self) -> float:
        """Number of times that a step runs the model over the batch."""
        return self.forward_passes * self.batch_factor

    def with_whole_logits(self) -> "StepCost":
        """Return the cost for a run that cannot compute the logits in chunks."""
        return replace(self, logits="whole") if self.logits == "chunked" else self
