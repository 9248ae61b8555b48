# SPDX-License-Identifier: Apache-2.0
"""Tiny random models with tokenizers of their own, and rows to train them on; all from seeds."""

import json
from pathlib import Path
from typing import Any

COLOURS = ["red", "green", "blue"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
WORDS = ["alpha", "beta", "gamma", "delta", *COLOURS, *NUMBERS]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
#: Task -> folder of its model, file of its rows.
PLACES = {
    "text-classification": ("encoder", "labelled.jsonl"),
    "token-classification": ("encoder", "tagged.jsonl"),
    "text-generation": ("decoder", "chat.jsonl"),
    "text2text-generation": ("seq2seq", "pairs.jsonl"),
}


def build_all(folder: Path) -> None:
    """Write every model and every file of rows into a folder, unless they are there."""
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    build_encoder(folder / "encoder")
    build_decoder(folder / "decoder", seed=0)
    build_decoder(folder / "decoder_teacher", seed=1)
    build_seq2seq(folder / "seq2seq", seed=0)
    build_seq2seq(folder / "seq2seq_teacher", seed=1)
    for name, rows in all_rows().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "complete").write_text("")


def _words_tokenizer(folder: Path, special: dict[str, str], single: str, **more: Any) -> int:
    """Save a tokenizer of whole words, and return the size of its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = list(special.values())
    vocabulary = {token: index for index, token in enumerate([*tokens, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    used = [(token, index) for index, token in enumerate(tokens) if token in single]
    backend.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=used, **more
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=64, **special
    ).save_pretrained(folder)
    return len(vocabulary)


def build_encoder(folder: Path) -> None:
    """Save a two-layer BERT without a head."""
    from transformers import BertConfig, BertModel, set_seed

    special = {
        "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }  # fmt: skip
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    size = _words_tokenizer(folder, special, "[CLS] $A [SEP]", pair=pair)
    set_seed(0)
    config = BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)


def build_decoder(folder: Path, seed: int) -> None:
    """Save a two-layer Llama on bytes, with biases and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    special = ["<|pad|>", "<|eos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        eos_token="<|eos|>",
        additional_special_tokens=special[2:],
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        mlp_bias=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def build_seq2seq(folder: Path, seed: int) -> None:
    """Save a BART of two layers a side."""
    from transformers import BartConfig, BartForConditionalGeneration, set_seed

    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    size = _words_tokenizer(folder, special, "$A </s>")
    set_seed(seed)
    config = BartConfig(
        vocab_size=size,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        dropout=0.1,
        init_std=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
    )
    BartForConditionalGeneration(config).save_pretrained(folder)


def all_rows() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every file by its name."""
    labelled = _labelled_rows()
    numbered = [{"text": row["text"], "label": len(row["text"]) / 10} for row in labelled]
    several = [
        {"text": row["text"], "label": [row["label"], "long"][: 1 + index % 2]}
        for index, row in enumerate(labelled)
    ]
    graded = [{**row, "grade": index * 7 % 60, "trust": 1 + index % 3}
              for index, row in enumerate(labelled)]  # fmt: skip
    prompts = [
        {"prompt": f"{WORDS[index % 15]} {index}: ", "completion": f"{index + 1}."}
        for index in range(40)
    ]
    return {
        "labelled.jsonl": labelled,
        "numbered.jsonl": numbered,
        "several.jsonl": several,
        "graded.jsonl": graded,
        "tagged.jsonl": [_tagged(row) for row in labelled],
        "chat.jsonl": [_chat(index) for index in range(40)],
        "prompts.jsonl": prompts,
        "plain.jsonl": [{"text": row["text"]} for row in labelled],
        "pairs.jsonl": [_pair(index) for index in range(60)],
    }


def _labelled_rows() -> list[dict[str, str]]:
    """Ragged texts whose label is their first colour; classes of 30, 20 and 10 rows."""
    rows = []
    for index, colour in enumerate(["red"] * 30 + ["green"] * 20 + ["blue"] * 10):
        others = [WORDS[(index * step) % 4] for step in range(1, 2 + index % 6)]
        rows.append({"text": " ".join([*others, colour, WORDS[7 + index % 8]]), "label": colour})
    return rows


def _tagged(row: dict[str, str]) -> dict[str, list[str]]:
    tokens = row["text"].split()
    tags = ["B-x" if word in COLOURS else "I-x" if word in NUMBERS else "O" for word in tokens]
    return {"tokens": tokens, "tags": tags}


def _chat(index: int) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": f"{WORDS[index % 15]} {index}?"},
        {"role": "assistant", "content": " ".join(WORDS[: 1 + index % 5])},
    ]
    if index % 2:
        turns += [
            {"role": "user", "content": "more"},
            {"role": "assistant", "content": WORDS[index % 7]},
        ]
    return {"messages": turns}


def _pair(index: int) -> dict[str, str]:
    words = [WORDS[(index * (3 + step) + step) % 15] for step in range(2 + index % 4)]
    return {"text": " ".join(words), "target": " ".join(words[1:])}
