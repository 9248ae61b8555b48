# SPDX-License-Identifier: Apache-2.0
"""A loss on the tokens' vectors, and on the nearby vectors with the highest loss.

The vectors of a row's tokens are moved by ``epsilon * g / |g|`` with the gradient ``g`` of the loss
in all of them together: that is where the loss rises fastest. Both count the same. Each row moves
by itself, so the gradient does not depend on how a batch is split.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hftune.core.cost import StepCost
from hftune.core.rng import RngState
from hftune.losses.loss import Batch, LabelStats, Loss, in_full, refuse_encoder_decoder
from hftune.models.structure import pretrained_in

#: What keeps a row without a gradient where it is.
TINY = 1e-12


class Adversarial(Loss):
    """The mean of a loss at the tokens' vectors and at those that are hardest nearby.

    Args:
        task_loss: What is computed twice, with the same draws of dropout.
        epsilon: How far a row moves, in the norm of all its vectors.

    References:
        Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples", 2015,
            arXiv:1412.6572.
        Miyato, Dai and Goodfellow, "Adversarial Training Methods for Semi-Supervised Text
            Classification", 2017, arXiv:1605.07725, equations 5 and 6; without their
            normalization of the vectors.
    """

    def __init__(self, task_loss: Loss, epsilon: float) -> None:
        self.task_loss = task_loss
        self.epsilon = epsilon

    def fit(self, stats: LabelStats) -> None:
        """Let the task's loss learn from the labels; see :class:`Loss`."""
        super().fit(stats)
        self.task_loss.fit(stats)

    def check(self, model: nn.Module) -> None:
        """Raise :class:`HftuneError` if the model reads in two places, or the loss does not fit."""
        refuse_encoder_decoder(model, "regularization.adversarial moves what one stack reads")
        self.task_loss.check(model)

    def prior(self) -> Tensor | None:
        """Return that of the task's loss; see :class:`Loss`."""
        return self.task_loss.prior()

    def denominator(self, batch: Batch) -> Tensor:
        """Return that of the task's loss; see :class:`Loss`."""
        return self.task_loss.denominator(batch)

    def step_cost(self) -> StepCost:
        """Return twice the cost of the task's loss, both passes at once, and the moved vectors."""
        once = self.task_loss.step_cost()
        again = replace(once, batch_factor=1, hidden_copies=once.hidden_copies + 3)
        if once.logits == "chunked":  # those of the first pass are gone in the second
            again = replace(again, logit_copies=0)
        return once + again

    def total(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """Return the mean of both sums, and the outputs of the first pass; see :class:`Loss`."""
        rng_state = RngState(inputs["input_ids"].device)
        read: list[Tensor] = []

        def look(vectors: Tensor) -> Tensor:
            read.append(vectors)
            return vectors

        with _reading(model, look):
            total, outputs = self.task_loss.total(model, inputs)
        # The last time that the model read: to save a head it may have been asked twice.
        (gradient,) = torch.autograd.grad(total.sum(), read[-1], retain_graph=True)
        moved = shift(gradient, self.epsilon)
        rng_state.restore()
        with _reading(model, lambda vectors: vectors + moved):
            hardest, _ = self.task_loss.total(model, inputs)
        return (total + hardest) / 2, outputs


def shift(gradient: Tensor, epsilon: float) -> Tensor:
    """Return steps of length ``epsilon`` along the gradient of each row, shape ``(B, T, D)``."""
    norms: Tensor = torch.linalg.vector_norm(in_full(gradient), dim=(1, 2), keepdim=True)
    return (epsilon * gradient / norms.clamp(min=TINY)).to(gradient.dtype)


@contextmanager
def _reading(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Read or change the vectors of the tokens, also where the embeddings are frozen."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        vectors: Tensor = output if output.requires_grad else output.detach().requires_grad_()
        return change(vectors)

    handle = pretrained_in(model).get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
