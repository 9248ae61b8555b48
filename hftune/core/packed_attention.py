# SPDX-License-Identifier: Apache-2.0
"""Attention of packed rows: each token sees its own row alone.

Three ways give the same. On a GPU all rows go through one call of PyTorch's kernel for rows of any
length, which is flash attention 2, where it knows the case: half precision, no dropout, every
token, those before, or a window. What it does not know is put back into its padded places for the
length of one call. A CPU takes row by row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

#: What adds to the scores of attention, which a call of ours would lose.
UNKNOWN = ("position_bias", "softcap", "s_aux")
#: What the kernel takes: the width of a head at most and in steps of, and the GPU's generation.
WIDEST_HEAD, HEAD_STEP, AMPERE = 256, 8, (8, 0)

Way = Literal["flash", "padded", "rows"]


@dataclass(frozen=True, eq=False)
class Packing:
    """Which places of a padded batch hold tokens; handed to the layers in place of a mask.

    Attributes:
        here: Whether there is a token, shape ``(B, T)``, bool.
        places: Those places, counted over ``B * T``, shape ``(N,)``.
        lengths: Tokens of each row that has any; ``N`` in all.
        causal: Whether a token sees no later one.
        make_mask: Makes the mask of the padded batch, shape ``(B, 1, T, T)``, bool.
        patterned: Whether it says more than ``causal`` and ``here`` do, as a sliding window does.
    """

    here: Tensor
    places: Tensor
    lengths: list[int]
    causal: bool
    make_mask: Callable[[], Tensor] | None = None
    patterned: bool = False

    @property
    def width(self) -> int:
        """Places of a row, padding included."""
        return self.here.shape[1]

    def pack(self, padded: Tensor) -> Tensor:
        """Return the tokens alone, ``(B or 1, T, ...)`` to ``(1, N, ...)``."""
        if padded.shape[0] == 1 and self.here.shape[0] > 1:  # one row stands for all
            return padded[0].index_select(0, self.places % self.width)[None]
        return padded.flatten(0, 1).index_select(0, self.places)[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """Return them at their places, ``(1, N, ...)`` to ``(B, T, ...)``, zero at padding."""
        padded = packed.new_zeros(self.here.numel(), *packed.shape[2:])
        padded = padded.index_copy(0, self.places, packed[0])
        return padded.view(*self.here.shape, *packed.shape[2:])

    @cached_property
    def ends(self) -> Tensor:
        """Where each row ends among the tokens, and 0 before them, shape ``(B + 1,)``, int32."""
        return F.pad(self.here.sum(1).cumsum(0), (1, 0)).int()

    @cached_property
    def mask(self) -> Tensor:
        """The mask of the padded batch, shape ``(B, 1, T, T)``, bool."""
        assert self.make_mask is not None
        return self.make_mask()

    @cached_property
    def masks(self) -> list[Tensor]:
        """Which tokens of a row see which, for each row that has any, shape ``(1, 1, n, n)``."""
        rows = self.here.any(1).nonzero().flatten().tolist()
        return [self.mask[row : row + 1, :, self.here[row]][..., self.here[row]] for row in rows]

    @cached_property
    def window(self) -> tuple[int, int] | None:
        """How many tokens before and after itself a token sees, -1 for all of them.

        None where no such numbers say it, as where rows are divided into chunks.
        """
        if not self.patterned:
            return (-1, 0) if self.causal else (-1, -1)
        rank = self.here.cumsum(1)
        later = rank[:, None] - rank[:, :, None]  # of each token, seen from each other of its row
        both = self.here[:, None] & self.here[:, :, None]
        seen = self.mask[:, 0] & both
        bounds = torch.stack([(-later * seen).max(), (later * seen).max()])
        band = (later >= -bounds[0]) & (later <= bounds[1])
        left, right, fits = *bounds, torch.equal(seen, band & both)
        return (int(left), int(right)) if fits else None


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attend within rows where they are packed, else as ``sdpa`` does.

    Args:
        module: The layer's attention.
        query: Shape ``(1, heads, N, d)``.
        key: Shape ``(1, heads, N, d)``, or with fewer heads that queries share.
        value: As ``key``.
        attention_mask: A :class:`Packing`, or what ``sdpa`` takes.
        dropout: Of attention weights.
        scaling: Of the scores.
        more: For ``sdpa``.

    Returns:
        What each token took, shape ``(1, N, heads, d)``, and no weights.
    """
    if not isinstance(attention_mask, Packing):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    unknown = [name for name in UNKNOWN if more.get(name) is not None]
    if unknown:
        raise ValueError(f"its attention adds {unknown[0]}")
    packing = attention_mask
    query, key, value = as_autocast(query, key, value)
    way = way_of(query, value, dropout, packing)
    if way == "flash":
        return in_one_call(query, key, value, packing, scaling), None
    if way == "rows":
        return _row_by_row(query, key, value, packing, dropout, scaling), None
    q, k, v = (packing.unpack(part.transpose(1, 2)).transpose(1, 2) for part in (query, key, value))
    taken, _ = sdpa_attention_forward(
        module, q, k, v, packing.mask, dropout=dropout, scaling=scaling, **more
    )
    return packing.pack(taken), None


def as_autocast(*parts: Tensor) -> list[Tensor]:
    """Return them in autocast's precision, as ``scaled_dot_product_attention`` takes them there.

    The kernel of :func:`in_one_call` is not known to autocast, and rotary embeddings of a model in
    single precision leave queries and keys in it.
    """
    if not parts[0].is_cuda or not torch.is_autocast_enabled("cuda"):
        return [*parts]
    return [part.to(torch.get_autocast_dtype("cuda")) for part in parts]


def way_of(query: Tensor, value: Tensor, dropout: float, packing: Packing) -> Way:
    """Choose how to attend."""
    if query.device.type == "cpu":
        return "rows"
    known = (
        query.is_cuda
        and query.dtype.itemsize == 2
        and not dropout
        and query.shape[-1] <= WIDEST_HEAD
        and query.shape[-1] % HEAD_STEP == 0
        and query.shape[-1] == value.shape[-1]
        and torch.cuda.get_device_capability(query.device) >= AMPERE
    )
    return "flash" if known and packing.window is not None else "padded"


def in_one_call(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float | None
) -> Tensor:
    """Attend in one call of PyTorch's kernel for rows of any length; see :func:`attend`."""
    from torch.nn.attention import varlen

    assert packing.window is not None
    ends, longest = packing.ends, max(packing.lengths)
    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
    shared = query.shape[1] != key.shape[1]
    taken = varlen.varlen_attn(
        queries, keys, values, ends, ends, longest, longest,
        scale=scale, window_size=packing.window, enable_gqa=shared,
    )  # fmt: skip
    return cast(Tensor, taken)[None]


def _row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    dropout: float,
    scale: float | None,
) -> Tensor:
    queries, keys, values = (part.split(packing.lengths, dim=2) for part in (query, key, value))
    none: list[Tensor | None] = [None] * len(packing.lengths)
    masks = [*packing.masks] if packing.patterned else none
    shared = query.shape[1] != key.shape[1]
    taken = [
        F.scaled_dot_product_attention(
            q, k, v, mask, dropout, packing.causal, scale=scale, enable_gqa=shared
        )
        for q, k, v, mask in zip(queries, keys, values, masks, strict=True)
    ]
    return torch.cat(taken, dim=2).transpose(1, 2).contiguous()
