# SPDX-License-Identifier: Apache-2.0
"""One vector a row out of the hidden states of its tokens."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from hftune.core.surgery import masked_mean

Pooling = Literal["cls", "mean", "last"]


def pooled(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Return the first token's state, the last one's, or the mean, ``(B, T, D)`` to ``(B, D)``.

    Padding may stand on either side.

    Args:
        hidden: Hidden states, shape ``(B, T, D)``.
        mask: 1 for a token and 0 for padding, shape ``(B, T)``.
        pooling: Which.

    Example:
        >>> hidden, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])
        >>> [pooled(hidden, mask, how).item() for how in ("cls", "mean", "last")]
        [1.0, 2.0, 3.0]
    """
    if pooling == "mean":
        return masked_mean(hidden, mask)
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    chosen = mask.int().argmax(1) if pooling == "cls" else (mask * places).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen]


def features(trunk: nn.Module, inputs: Any, pooling: Pooling, layer: int) -> Tensor:
    """Return one vector a row, float32, shape ``(B, D)``.

    Args:
        trunk: A model without a head, or the encoder of one with a decoder.
        inputs: ``input_ids``, ``attention_mask`` and what else the trunk takes.
        pooling: What becomes of the tokens.
        layer: Index of ``hidden_states``: 0 the embeddings, -1 the last layer.
    """
    if layer == -1:
        hidden = trunk(**inputs).last_hidden_state
    else:
        hidden = trunk(**inputs, output_hidden_states=True).hidden_states[layer]
    return pooled(hidden.float(), inputs["attention_mask"], pooling)
