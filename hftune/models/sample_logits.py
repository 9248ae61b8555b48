# SPDX-License-Identifier: Apache-2.0
"""Logits of sample rows, by which two models are compared."""

from typing import Any

import torch
from torch import Tensor

LENGTHS = (3, 8, 13)


def probe_ids(tokenizer: Any) -> list[list[int]]:
    """Return rows of several lengths whose ids are spread over the whole vocabulary."""
    size = len(tokenizer)
    ids = torch.linspace(0, size - 1, sum(LENGTHS)).long().tolist()
    special = set(tokenizer.all_special_ids)
    plain = next(index for index in range(size) if index not in special)
    ids = [plain if index in special else index for index in ids]
    return [row.tolist() for row in torch.tensor(ids).split(LENGTHS)]


def logits_of(model: Any, ids: list[list[int]], *, decodes: bool = False) -> dict[str, Tensor]:
    """Return the logits of each row, by its number.

    Args:
        model: In evaluation mode.
        ids: The rows; see :func:`probe_ids`.
        decodes: Whether it is an encoder-decoder, whose decoder reads the same row.
    """
    rows = {}
    with torch.no_grad():
        for index, row in enumerate(ids):
            batch = torch.tensor([row], device=model.device)
            more = {"decoder_input_ids": batch} if decodes else {}
            output = model(input_ids=batch, attention_mask=torch.ones_like(batch), **more)
            rows[str(index)] = output.logits.float().cpu().contiguous()
    return rows
