# SPDX-License-Identifier: Apache-2.0
"""Tiny models of every family, and what they are fed, for the tuners of our own."""

from typing import Any

import torch
import transformers
from torch import nn

WORDS = 40
SIZES = {
    "vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 32,
}  # fmt: skip
SEQ2SEQ = {
    "vocab_size": WORDS, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "max_position_embeddings": 32, "decoder_start_token_id": 1,
    "dropout": 0.0,
}  # fmt: skip
#: Family -> class of the model, fields of its config.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", SIZES),
    "llama": ("LlamaForCausalLM", {**SIZES, "num_key_value_heads": 2}),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": WORDS, "n_embd": 16, "n_layer": 2, "n_head": 2,
                                 "n_positions": 32}),
    "t5": ("T5ForConditionalGeneration", {"vocab_size": WORDS, "d_model": 16, "d_kv": 8,
                                          "d_ff": 32, "num_layers": 2, "num_heads": 2,
                                          "decoder_start_token_id": 0}),
    "bart": ("BartForConditionalGeneration", SEQ2SEQ),
    "vit": ("ViTForImageClassification", {**SIZES, "image_size": 8, "patch_size": 4}),
    "swin": ("SwinForImageClassification", {"image_size": 16, "patch_size": 2, "embed_dim": 8,
                                            "depths": [1, 1], "num_heads": [1, 2],
                                            "window_size": 4}),
    "convnext": ("ConvNextForImageClassification", {"num_stages": 2, "hidden_sizes": [8, 16],
                                                    "depths": [1, 1], "image_size": 16,
                                                    "patch_size": 2}),
    "mixtral": ("MixtralForCausalLM", {**SIZES, "num_key_value_heads": 2, "num_local_experts": 2}),
}  # fmt: skip
SEQ2SEQS = ("t5", "bart")
IMAGE_SIZES = {"vit": 8, "swin": 16, "convnext": 16}


def build(family: str) -> Any:
    """A frozen random model: PyTorch rounds differently where a weight may train."""
    name, fields = FAMILIES[family]
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**fields)).eval().requires_grad_(False)
    for parameter in model.parameters():  # else a fresh model does nearly nothing
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def batch(family: str) -> dict[str, torch.Tensor]:
    """What the family's model takes: two rows."""
    generator = torch.Generator().manual_seed(1)
    if family in IMAGE_SIZES:
        size = IMAGE_SIZES[family]
        return {"pixel_values": torch.randn(2, 3, size, size, generator=generator)}
    ids = torch.randint(3, WORDS, (2, 6), generator=generator)
    return (
        {"input_ids": ids, "decoder_input_ids": ids[:, :4]}
        if family in SEQ2SEQS
        else {"input_ids": ids}
    )
