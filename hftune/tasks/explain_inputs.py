# SPDX-License-Identifier: Apache-2.0
"""Inputs of one explanation, and the steps that tasks of texts share to make them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hftune.core.console import warn
from hftune.tasks.token_texts import EncodedText, Token, encode_text, read_tokens

#: Next tokens of a language model that are shown.
NEXT_TOKENS = 6


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """Options of one explanation.

    Attributes:
        text_pair: The second text of a pair.
        generate: Number of tokens to write; None for the task's own choice.
        raw: Whether a chat template is left out.
        max_length: Tokens that are read at most.
        trained_length: Tokens that training read at most; None without a limit.
        columns: Role -> column of the training data.
    """

    text_pair: str | None = None
    generate: int | None = None
    raw: bool = False
    max_length: int = 512
    trained_length: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExplainInputs:
    """Inputs of the one forward pass that is explained.

    Attributes:
        inputs: Inputs of the model, tensors of shape ``(1, T)``.
        tokens: The T tokens; a token that begins a word carries its tag, if the model gives tags.
        decoder_tokens: Tokens that the decoder of an encoder-decoder reads, each with the token
            that it writes.
        prediction: Prediction of the model, where it is known before the pass.
    """

    inputs: Any
    tokens: list[Token]
    decoder_tokens: list[Token] = field(default_factory=list)
    prediction: dict[str, Any] | None = None


def encoded_for(
    tokenizer: PreTrainedTokenizerBase, text: str, options: ExplainOptions
) -> EncodedText:
    """Encode a text, or a pair, within the limits; warn if it is truncated."""
    known = options.trained_length
    limit = options.max_length if known is None else min(known, options.max_length)
    encoded = encode_text(tokenizer, text, options.text_pair, max_length=limit)
    if encoded.num_truncated:
        warn(f"the last {encoded.num_truncated} tokens were cut: {limit} are read at most")
    return encoded


def generated_ids(
    model: Any, tokenizer: PreTrainedTokenizerBase, inputs: Any, **options: Any
) -> torch.Tensor:
    """Return token ids that a model generates from the inputs of one row."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model.eval()
    given = {name: value.to(model.device) for name, value in inputs.items()}
    with torch.inference_mode():
        ids: torch.Tensor = model.generate(**given, pad_token_id=pad, **options)
    return ids


def best_labels(probabilities: torch.Tensor, names: list[str]) -> list[dict[str, Any]]:
    """Return the names of labels and their probabilities, the best first."""
    best = probabilities.topk(len(probabilities))
    return [
        {"name": names[index], "probability": share}
        for index, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def next_tokens(logits: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Return the most likely next tokens from logits ``(C,)``, the best first."""
    best = logits.float().cpu().softmax(-1)
    top = best.topk(min(NEXT_TOKENS, len(best)))
    return [
        {"name": read_tokens(tokenizer, [index], ["generated"])[0].text, "probability": share}
        for index, share in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
