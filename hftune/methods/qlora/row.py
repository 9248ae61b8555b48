# SPDX-License-Identifier: Apache-2.0
"""Facts about QLoRA: the defaults of its paper, and rules about its base."""

from hftune.core.registry import MethodRow
from hftune.core.rules import Rule
from hftune.methods.peft_row import LORA_RULES, PEFT_RANGES
from hftune.models.section import ModelSection

QLORA = MethodRow(
    target="hftune.methods.qlora.method:QLora",
    options="peft:LoraConfig",
    summary="LoRA on a base in 4-bit NormalFloat, with the defaults of the paper.",
    saves="adapter",
    trains="adapter",
    learning_rate=2e-4,
    defaults={
        "r": 64,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "target_modules": "all-linear",
    },
    training_defaults={
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 0.03,
        "max_grad_norm": 0.3,
    },
    quantization={
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    device_defaults="hftune.methods.qlora.method:device_defaults",
    ranges=PEFT_RANGES,
    rules=(
        Rule(
            "model.quantization",
            "qlora has a 4-bit base; take lora for 8 bits, or for none",
            lambda s: (
                s[ModelSection].quantizes("load_in_8bit")
                or not s[ModelSection].quantizes("load_in_4bit")
            ),
        ),
        *LORA_RULES,
    ),
    has_lora_pairs=True,
    recompute_tested=True,
)
