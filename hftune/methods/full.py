# SPDX-License-Identifier: Apache-2.0
"""Full fine-tuning: every weight trains."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from hftune.methods.method import Method
from hftune.tasks.context import RunContext


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Train every parameter; it takes no options."""

    def apply(self, model: PreTrainedModel, context: RunContext) -> nn.Module:
        """Switch every gradient on."""
        return model.requires_grad_(True)
