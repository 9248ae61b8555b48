# SPDX-License-Identifier: Apache-2.0
"""Rules of the model."""

from hftune.methods import METHODS
from hftune.recipe.rules.rule import Rule, installed, quantized

PROMPT_METHODS = ("prompt_tuning", "p_tuning", "prefix_tuning", "adaption_prompt")

MODEL_RULES = (
    Rule(
        "model.classifier_pooling",
        "only the head of text-classification pools",
        lambda s: s["task"] != "text-classification" and s["model"].classifier_pooling != "cls",
    ),
    Rule(
        "model.attn_implementation",
        "flash-attn is not installed; sdpa needs no package",
        lambda s: (
            s["model"].attn_implementation == "flash_attention_2" and not installed("flash_attn")
        ),
    ),
    Rule(
        "model.quantization",
        "bitsandbytes is not installed: pip install 'hftune[bnb]'",
        lambda s: quantized(s, "load_in_4bit", "load_in_8bit") and not installed("bitsandbytes"),
    ),
    Rule(
        "model.quantization",
        "quantized weights are frozen, so the method must be a PEFT adapter",
        lambda s: (
            s["model"].quantization is not None
            and s["method"].name in METHODS
            and s["method"].name not in ("relora", "qlora")
        ),
    ),
    Rule(
        "model.classifier_pooling",
        "mean pooling cannot see the virtual tokens of prompt methods; use cls",
        lambda s: s["model"].classifier_pooling == "mean" and s["method"].name in PROMPT_METHODS,
    ),
)
