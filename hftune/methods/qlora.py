# SPDX-License-Identifier: Apache-2.0
"""QLoRA: LoRA on a base whose weights are kept in 4-bit NormalFloat.

Dettmers, Pagnoni, Holtzman and Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs", 2023,
arXiv:2305.14314. The parts are those of the libraries: NF4, double quantization and the paged
optimizer of bitsandbytes, LoRA of PEFT. This name sets them as the paper has them.
"""

from typing import Any

from hftune.methods.peft import Peft


class QLora(Peft):
    """LoRA by another name; :mod:`hftune.recipe.defaults` holds what the name sets.

    Args:
        options: Fields of ``peft.LoraConfig``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("lora", options)
        self.name = "qlora"
