# SPDX-License-Identifier: Apache-2.0
"""BitFit: the biases train, and a classification head; every other weight stands still.

Ben Zaken, Goldberg and Ravfogel, "BitFit: Simple Parameter-efficient Fine-tuning for
Transformer-based Masked Language-models", 2022, arXiv:2106.10199.
"""

import re
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from hftune.core.errors import HftuneError
from hftune.methods.method import Method
from hftune.models.module_names import check_pattern, is_named, places
from hftune.tasks.context import RunContext

#: ``bias``, and in some models ``q_bias``, ``in_proj_bias`` or ``bias_ih_l0``.
BIAS = re.compile(r"(.*[._])?bias(_[^.]*)?")


@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """Train the biases.

    Args:
        target_modules: Modules whose biases train; all if absent.
    """

    target_modules: str | list[str] | None = field(
        default=None,
        metadata={
            "help": "Modules whose biases train: a regular expression, or a list of names or "
            "their last parts; all if absent."
        },
    )

    def apply(self, model: PreTrainedModel, context: RunContext) -> nn.Module:
        """Switch the biases on, and the head of a task that is not the model's own.

        Raises:
            HftuneError: The pretrained part of the model has no biases, or none where they are
                wanted.
        """
        where = places(model, ())
        biases = {name for name in where if BIAS.fullmatch(name) and where[name] != "head"}
        if not biases:
            raise HftuneError(
                f"method bitfit: {type(model).__name__} has no biases",
                hint="ln_tuning trains its norms, lora a low-rank update of its layers",
            )
        if self.target_modules is not None:
            check_pattern("method.target_modules", self.target_modules, model)
            biases = {name for name in biases if is_named(name, self.target_modules)}
            if not biases:
                raise HftuneError(
                    f"method.target_modules: no biases there in {type(model).__name__}"
                )
        model.requires_grad_(False)
        for name in biases:
            model.get_parameter(name).requires_grad_(True)
        if model.get_output_embeddings() is None:  # that of a language model is pretrained
            for name in where:
                model.get_parameter(name).requires_grad_(name in biases or where[name] == "head")
        for name in context.new_modules:
            model.get_submodule(name).requires_grad_(True)
        return model
