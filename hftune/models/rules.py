# SPDX-License-Identifier: Apache-2.0
"""Rules of the section ``model``."""

from hftune.core.rules import Rule, installed
from hftune.models.section import ModelSection

MODEL_RULES = (
    Rule(
        "model.attn_implementation",
        "flash-attn is not installed: pip install 'hftune[flash]'; auto needs no package",
        lambda s: (
            s[ModelSection].attn_implementation == "flash_attention_2"
            and not installed("flash_attn")
        ),
    ),
    Rule(
        "model.quantization",
        "bitsandbytes is not installed: pip install 'hftune[bnb]'",
        lambda s: (
            s[ModelSection].quantizes("load_in_4bit", "load_in_8bit")
            and not installed("bitsandbytes")
        ),
    ),
    Rule(
        "model.quantization",
        "quantized weights are frozen, so the method must be a PEFT adapter",
        lambda s: s[ModelSection].quantization is not None and s.method_row.trains != "adapter",
    ),
    Rule(
        "model.classifier_pooling",
        "mean pooling cannot see the virtual tokens of prompt methods; use cls",
        lambda s: (
            s[ModelSection].classifier_pooling == "mean" and s.method_row.virtual_tokens is not None
        ),
    ),
    Rule(
        "model.keep_layers",
        "layers are named once each, from the lowest to the highest, and counted from 0",
        lambda s: (
            (kept := s[ModelSection].keep_layers) is not None
            and (not kept or kept != sorted(set(kept)) or kept[0] < 0)
        ),
    ),
    Rule(
        "model.keep_layers",
        "a model without its other layers is saved whole; an adapter or a probe would lie beside a "
        "base that nobody has: take full or another method that leaves a whole model",
        lambda s: s[ModelSection].keep_layers is not None and s.method_row.saves != "model",
    ),
    Rule(
        "model.keep_layers",
        "an encoder with a decoder has two stacks of layers",
        lambda s: s[ModelSection].keep_layers is not None and s.task_row.encoder_decoder,
    ),
    Rule(
        "model.keep_layers",
        "it decides model.config.num_hidden_layers: leave that out",
        lambda s: (
            s[ModelSection].keep_layers is not None
            and "num_hidden_layers" in s[ModelSection].config
        ),
    ),
)
