# SPDX-License-Identifier: Apache-2.0
"""R-Drop: every row twice under dropout, and both answers drawn together.

``(ce(p1) + ce(p2)) / 2 + alpha * (KL(p1 || p2) + KL(p2 || p1)) / 2`` for each row, or token, times
the weight of its label. The paper writes the sum of both cross-entropies, which is this loss with
half of the ``alpha``, doubled. Both passes are one forward of the batch and its copy.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hftune.core.cost import StepCost
from hftune.core.errors import HftuneError
from hftune.losses.cross_entropy import CrossEntropy
from hftune.losses.loss import Batch, aligned, forward


@dataclass(kw_only=True)
class RDrop(CrossEntropy):
    """Cross-entropy of two passes, and the divergence between them.

    Args:
        alpha: Weight of the divergence.

    References:
        Wu et al., "R-Drop: Regularized Dropout for Neural Networks", 2021, arXiv:2106.14448,
            equation 4.
    """

    alpha: float = 1.0

    def check(self, model: nn.Module) -> None:
        """Raise :class:`HftuneError` if nothing would differ between the passes."""
        if not has_dropout(model):
            raise HftuneError(
                "loss: r_drop compares two draws of dropout, and this model has none",
                hint="raise one, such as model.config: {hidden_dropout_prob: 0.1} or "
                "method.lora_dropout: 0.1",
            )

    def step_cost(self) -> StepCost:
        """Return the cost of a pass over twice the batch, whose logits are compared as a whole."""
        return replace(super().step_cost(), batch_factor=2, logits="whole", logit_copies=7)

    def total(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """Return the summed loss and the outputs of both passes; see :class:`Loss`."""
        twice = {name: torch.cat([value, value]) for name, value in inputs.items()}
        outputs = forward(model, twice)
        logits, labels = aligned(outputs.logits, twice["labels"], causal=self.causal)
        first, second = logits.log_softmax(1).chunk(2)
        apart = self.weighted(divergence(first, second), labels[: len(first)])
        return self.cross_entropy(logits, labels) / 2 + self.alpha * apart, outputs


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean of both Kullback-Leibler divergences of each row, shape ``(N,)``.

    Args:
        first: Log probabilities, shape ``(N, C)``.
        second: Log probabilities, the same shape.
    """
    return ((first.exp() - second.exp()) * (first - second)).sum(1) / 2


def has_dropout(model: nn.Module) -> bool:
    """Tell whether a model drops anything: by its modules, or by a field of its config."""
    modules = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    config: Any = model.config
    fields = {**config.to_dict(), **config.get_text_config().to_dict()}
    return modules or any(
        isinstance(value, float) and value > 0
        for name, value in fields.items()
        if "drop" in name and not name.endswith("classifier_dropout")
    )
