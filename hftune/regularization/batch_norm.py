# SPDX-License-Identifier: Apache-2.0
"""Statistics of batch normalization that stay as they were pretrained.

A small batch gives poor means and variances. The modules normalize by the stored ones then, as in
evaluation; their scale and shift train on. Ioffe and Szegedy, "Batch Normalization", 2015,
arXiv:1502.03167.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hftune.core.errors import HftuneError
from hftune.regularization.attached import Attached, Handle


class FrozenBatchNorm(Attached):
    """Keeps batch normalization in evaluation mode while the rest of a model trains.

    Args:
        model: With batch normalization.

    Raises:
        HftuneError: It has none.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.modules = batch_norms(model)
        if not self.modules:
            raise HftuneError(
                f"regularization.freeze_batch_norm: {type(model).__name__} has no batch "
                "normalization",
                hint="layer normalization keeps no statistics; leave it out",
            )

    def attach(self) -> list[Handle]:
        """Register hooks, because the Trainer sets the whole model to training at every step."""
        return [module.register_forward_pre_hook(_in_evaluation) for module in self.modules]


def _in_evaluation(module: nn.Module, args: Any) -> None:
    module.eval()


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the modules that keep statistics of batches."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Let a forward pass normalize by its batch and leave the stored statistics alone."""
    momenta = {module: module.momentum for module in batch_norms(model)}
    for module in momenta:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in momenta.items():
            module.momentum = momentum
