# SPDX-License-Identifier: Apache-2.0
"""Facts about ReLoRA and rules about its options."""

from hftune.core.registry import ABOVE_ZERO, AT_LEAST_ZERO, MethodRow
from hftune.core.rules import Rule, option
from hftune.methods.peft_row import LORA_RULES, PEFT_RANGES
from hftune.models.section import ModelSection

RELORA = MethodRow(
    target="hftune.methods.relora.method:ReLora",
    options="hftune.methods.relora.method:ReLoraConfig",
    summary="Low-rank updates, merged again and again: their sum has a high rank.",
    trains="adapter",
    defaults={"target_modules": "all-linear"},
    ranges={
        **PEFT_RANGES,
        "merge_every": ABOVE_ZERO,
        "reset_ratio": {**AT_LEAST_ZERO, "maximum": 1},
        "rewarm_steps": AT_LEAST_ZERO,
        "warm_start_steps": AT_LEAST_ZERO,
    },
    rules=(
        Rule(
            "model.quantization",
            "relora merges into 4-bit weights or whole ones, not into 8-bit ones",
            lambda s: s[ModelSection].quantizes("load_in_8bit"),
        ),
        Rule(
            "method.warm_start_steps",
            "a warm start trains every weight, and quantized ones cannot train",
            lambda s: (
                s[ModelSection].quantization is not None and bool(option(s, "warm_start_steps"))
            ),
        ),
        *LORA_RULES,
    ),
    sets_weights=True,
    restarts=True,
    recompute_tested=True,
)
