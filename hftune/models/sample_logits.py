# SPDX-License-Identifier: Apache-2.0
"""Logits of sample rows, for the comparison of two models."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def logits_of(model: Any, rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the logits of each row by its number, as float32 on the CPU.

    Args:
        model: A model in evaluation mode.
        rows: Inputs of the model, one row each; see a task's ``sample_inputs``.
    """
    logits = {}
    with torch.no_grad():
        for index, row in enumerate(rows):
            output = model(**{name: value.to(model.device) for name, value in row.items()})
            logits[str(index)] = output.logits.float().cpu().contiguous()
    return logits
