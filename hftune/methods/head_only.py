# SPDX-License-Identifier: Apache-2.0
"""Linear probing in place: the pretrained trunk is frozen, the classification head trains.

The head is every module outside the trunk, plus whatever the checkpoint lacks (a pooler that came
untrained, for one): a frozen random layer would be of no use to anybody.
"""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from hftune.methods.method import Method
from hftune.tasks.context import RunContext


@dataclass(frozen=True, kw_only=True)
class HeadOnly(Method):
    """Train the classification head alone; it takes no options."""

    def apply(self, model: PreTrainedModel, context: RunContext) -> nn.Module:
        """Freeze the trunk and leave the head and the new modules training."""
        model.requires_grad_(True)
        model.base_model.requires_grad_(False)
        for name in context.new_modules:
            model.get_submodule(name).requires_grad_(True)
        return model
