# SPDX-License-Identifier: Apache-2.0
"""Predicting many rows: longest first, so that little is padding, with a progress bar."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DataCollator, PreTrainedTokenizerBase

from hftune.core.console import console
from hftune.losses.loss import forward
from hftune.models.structure import num_positions
from hftune.tasks.processed import ProcessedDataset

GREEDY: Mapping[str, Any] = MappingProxyType({"num_beams": 1, "do_sample": False})


def scores(
    model: Any, processed: ProcessedDataset, collate: DataCollator, batch_size: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield the row's index and its logits, on the CPU in float32.

    Args:
        model: In evaluation mode.
        processed: Rows without labels.
        collate: Makes a batch.
        batch_size: Rows a batch.
    """
    for indices in batches_by_length(processed.lengths(), batch_size):
        made: Any = collate([processed.dataset[index] for index in indices])
        batch = {name: value.to(model.device) for name, value in made.items()}
        with torch.inference_mode():
            logits = forward(model, batch).logits.float().cpu()
        yield from zip(indices, logits, strict=True)


def generated(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    batch_size: int,
    max_new_tokens: int,
    max_length: int | None = None,
    add_special_tokens: bool = True,
    options: Mapping[str, Any] = GREEDY,
) -> list[str]:
    """Return what the model writes after, or for, each prompt.

    A decoder's prompt that is too long is cut at its beginning: the question stands at the end.

    Args:
        model: In evaluation mode; a decoder, or an encoder with a decoder.
        tokenizer: Its tokenizer.
        prompts: Texts.
        batch_size: Rows a batch.
        max_new_tokens: Length of an answer; an encoder's decoder stops where its positions end.
        max_length: Tokens that a prompt may have; None for no limit.
        add_special_tokens: Whether the tokenizer adds its own; a chat template has done so.
        options: Fields of ``GenerationConfig``; greedy if left out.
    """
    tokenizer = copy.deepcopy(tokenizer)  # its sides are set for this alone
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    continues = not model.config.is_encoder_decoder
    if not continues and (positions := free_positions(model)) is not None:
        max_new_tokens = min(max_new_tokens, positions - 1)  # the start takes one
    if continues:
        tokenizer.padding_side = tokenizer.truncation_side = "left"
    texts = [""] * len(prompts)
    for indices in batches_by_length([len(prompt) for prompt in prompts], batch_size):
        batch = tokenizer(
            [prompts[index] for index in indices],
            add_special_tokens=add_special_tokens,
            padding=True,
            truncation=max_length is not None,
            max_length=max_length,
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            produced = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                pad_token_id=tokenizer.pad_token_id,
                **{**GREEDY, **options, "max_new_tokens": max_new_tokens},
            )
        if continues:
            produced = produced[:, batch["input_ids"].shape[1] :]
        for index, text in zip(
            indices, tokenizer.batch_decode(produced, skip_special_tokens=True), strict=True
        ):
            texts[index] = text.strip()
    return texts


def free_positions(model: Any) -> int | None:
    """Return the positions that virtual tokens leave to real ones; None where they have no end."""
    positions = num_positions(model.config)
    if positions is None or not isinstance(model, PeftModel):
        return positions
    adapter: Any = model.active_peft_config
    return positions - adapter.num_virtual_tokens if adapter.is_prompt_learning else positions


def batches_by_length(
    lengths: Sequence[int], size: int, doing: str = "predicting"
) -> Iterator[list[int]]:
    """Yield the indices of batches, longest rows first, and show how far it is."""
    from rich.progress import track

    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    starts = range(0, len(order), size)
    for start in track(
        starts, doing, console=console(), transient=True, disable=not console().is_terminal
    ):
        yield order[start : start + size]
