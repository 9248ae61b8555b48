# SPDX-License-Identifier: Apache-2.0
"""Tiny models of many families, rows of several lengths, and what a model makes of them."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn

SIZES = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "max_position_embeddings": 128}  # fmt: skip
SHARED = {**SIZES, "num_key_value_heads": 2}
SAID = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
#: Class -> fields of its config. Windows are shorter than the rows.
FAMILIES: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": SIZES,
    "RobertaForTokenClassification": {**SIZES, "pad_token_id": 1},
    "XLMRobertaForSequenceClassification": {**SIZES, "pad_token_id": 1},
    "ElectraForSequenceClassification": SIZES,
    "DistilBertForSequenceClassification": {
        "vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64,
    },
    "ModernBertForSequenceClassification": {
        **SIZES, **SAID, "num_hidden_layers": 4, "local_attention": 4,
        "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2,
    },
    "LlamaForCausalLM": {**SHARED, **SAID},
    "LlamaForSequenceClassification": {**SHARED, **SAID},
    "Qwen2ForCausalLM": {**SHARED, **SAID},
    "Qwen3ForCausalLM": {**SHARED, **SAID, "head_dim": 8},
    "MistralForCausalLM": {**SHARED, **SAID, "sliding_window": 4},
    "Gemma3ForCausalLM": {**SHARED, **SAID, "head_dim": 8, "sliding_window": 4},
    "Llama4ForCausalLM": {  # attention in chunks, which begin at each row's own first token
        **SHARED, **SAID, "head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2,
        "num_experts_per_tok": 1, "attention_chunk_size": 4, "no_rope_layers": [1, 1],
    },
    "GPT2LMHeadModel": {**SAID, "vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "GPTNeoXForCausalLM": {**SIZES, **SAID},
    "PhiForCausalLM": {**SIZES, **SAID},
    "OPTForCausalLM": {
        **SAID, "vocab_size": 100, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 128, "word_embed_proj_dim": 32,
    },
    "Olmo2ForCausalLM": {**SHARED, **SAID},
}  # fmt: skip
#: Who is not packed, and what is said of it.
PADDED: dict[str, tuple[dict[str, Any], str]] = {
    "DebertaV2ForSequenceClassification": (SIZES, "eager attention"),
    "Gemma2ForCausalLM": ({**SHARED, **SAID, "head_dim": 8}, "eager attention"),
    "AlbertForSequenceClassification": ({**SIZES, "embedding_size": 16}, "no plain stack"),
    "FalconForCausalLM": (
        {**SAID, "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4},
        "no mask that could say",
    ),
    "BartForConditionalGeneration": (
        {"vocab_size": 100, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2},
        "looks at an encoder",
    ),
}  # fmt: skip
LENGTHS = [5, 20, 1, 13]


def make(name: str, fields: dict[str, Any], **more: Any) -> Any:
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**fields, **more)).eval()
    for parameter in model.parameters():  # so that attention is not uniform
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    return model


def rows(model: Any, *, left: bool = False) -> dict[str, Tensor]:
    here = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    here = here.flip(1) if left else here
    ids = torch.randint(5, 99, here.shape, generator=torch.Generator().manual_seed(1))
    padding = torch.tensor(model.config.pad_token_id or 0)
    return {"input_ids": ids.where(here, padding), "attention_mask": here.long()}


def answer(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what is read of the logits, and all gradients of a loss on it."""
    model.zero_grad()
    logits = model(**batch).logits
    if logits.dim() == 3:
        logits = logits[batch["attention_mask"].bool()]
    logits.pow(2).mean().backward()
    return logits.detach(), {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def layers_of(model: Any) -> nn.ModuleList:
    return next(
        part for _, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) == model.config.num_hidden_layers
    )  # fmt: skip
