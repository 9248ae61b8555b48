# SPDX-License-Identifier: Apache-2.0
"""QLoRA: LoRA on a base whose weights are kept in 4-bit NormalFloat.

Dettmers, Pagnoni, Holtzman and Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs", 2023,
arXiv:2305.14314. The parts are those of the libraries: NF4, double quantization and the paged
optimizer of bitsandbytes, LoRA of PEFT. This name sets them as the paper has them.
"""

from typing import Any

import torch

from hftune.methods.peft import Peft


class QLora(Peft):
    """LoRA by another name; its row holds the defaults.

    Args:
        options: Fields of ``peft.LoraConfig``.

    Example:
        >>> QLora(r=8).options
        {'r': 8}
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("lora", options)
        self.name = "qlora"


def device_defaults(*, on_gpu: bool, sharded: bool) -> tuple[dict[str, object], dict[str, object]]:
    """Return fields of ``model.quantization`` and of ``training`` that suit a device.

    The base is multiplied in bfloat16 if the GPU has it. The optimizer can move its states to the
    memory of the CPU, which only helps on a GPU, and is not made for a sharded model.

    Args:
        on_gpu: Whether the run is on a GPU.
        sharded: Whether each process holds a part of the model only.

    Example:
        >>> device_defaults(on_gpu=False, sharded=False)
        ({'bnb_4bit_compute_dtype': 'float32'}, {})
    """
    bf16 = on_gpu and torch.cuda.is_bf16_supported()
    quantization: dict[str, object] = {"bnb_4bit_compute_dtype": "bfloat16" if bf16 else "float32"}
    return quantization, {"optim": "paged_adamw_32bit"} if on_gpu and not sharded else {}
