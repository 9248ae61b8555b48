# SPDX-License-Identifier: Apache-2.0
"""Compute attention of packed rows: each token attends only to tokens of its own row.

Four ways give the same result. On a GPU, one call of PyTorch's kernel for rows of any length (flash
attention 2) handles all rows, if it supports the case: half precision, no dropout, and full, causal
or sliding-window attention. Other cases are unpacked to padded places for one call. A CPU computes
one row after the other. PyTorch has no CPU kernel with dropout, so there rows of similar length are
computed together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

#: Arguments that change the scores of attention, which these functions do not support.
UNKNOWN = ("position_bias", "softcap", "s_aux")
#: Limits of the kernel: largest width of a head, its step, and the oldest generation of GPU.
WIDEST_HEAD, HEAD_STEP, AMPERE = 256, 8, (8, 0)

#: Scores of a head that may be wasted on padding to save a call: the cost of a call on a CPU.
SPARE = 1500

Way = Literal["flash", "padded", "rows", "alike"]


@dataclass(frozen=True, eq=False)
class Alike:
    """Rows of similar length that attend in one call.

    Attributes:
        tokens: Positions of the tokens of each row, as many as the longest row has, shape
            ``(g, T)``; a shorter row repeats its first token.
        inside: Whether a position belongs to the row, shape ``(g, T)``, bool.
        bias: Added to the scores, shape ``(g, 1 or T, T)``: the lowest float32 where a token may
            not be seen; None if all tokens are seen.
    """

    tokens: Tensor
    inside: Tensor
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Packing:
    """The positions of tokens in a padded batch; the layers receive it in place of a mask.

    Attributes:
        here: Whether a position holds a token, shape ``(B, T)``, bool.
        places: Positions of tokens, counted over ``B * T``, shape ``(N,)``.
        lengths: Number of tokens of each row that has any; they sum to ``N``.
        causal: Whether a token sees no later token.
        make_mask: Function that returns the mask of the padded batch, shape ``(B, 1, T, T)``, bool.
        patterned: Whether the mask says more than ``causal`` and ``here``, as sliding windows do.

    Example:
        >>> here = torch.tensor([[True, True], [True, False]])
        >>> packing = Packing(here, torch.tensor([0, 1, 2]), [2, 1], causal=True)
        >>> packing.pack(torch.tensor([[5, 6], [7, 0]]))
        tensor([[5, 6, 7]])
        >>> packing.unpack(torch.tensor([[5, 6, 7]]))
        tensor([[5, 6],
                [7, 0]])
    """

    here: Tensor
    places: Tensor
    lengths: list[int]
    causal: bool
    make_mask: Callable[[], Tensor] | None = None
    patterned: bool = False

    @property
    def width(self) -> int:
        """Length of a row, padding included."""
        return self.here.shape[1]

    def pack(self, padded: Tensor) -> Tensor:
        """Return the tokens without padding, ``(B or 1, T, ...)`` to ``(1, N, ...)``."""
        if padded.shape[0] == 1 and self.here.shape[0] > 1:  # one row stands for all
            return padded[0].index_select(0, self.places % self.width)[None]
        return padded.flatten(0, 1).index_select(0, self.places)[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """Return tokens at padded places, ``(1, N, ...)`` to ``(B, T, ...)``, zero at padding."""
        padded = packed.new_zeros(self.here.numel(), *packed.shape[2:])
        padded = padded.index_copy(0, self.places, packed[0])
        return padded.view(*self.here.shape, *packed.shape[2:])

    @cached_property
    def ends(self) -> Tensor:
        """0 and the end of each row among the packed tokens, shape ``(B + 1,)``, int32."""
        return F.pad(self.here.sum(1).cumsum(0), (1, 0)).int()

    @cached_property
    def mask(self) -> Tensor:
        """The mask of the padded batch, shape ``(B, 1, T, T)``, bool."""
        assert self.make_mask is not None
        return self.make_mask()

    @cached_property
    def masks(self) -> list[Tensor]:
        """The mask of each row that has tokens, without padding, shape ``(1, 1, n, n)``."""
        rows = self.here.any(1).nonzero().flatten().tolist()
        return [self.mask[row : row + 1, :, self.here[row]][..., self.here[row]] for row in rows]

    @cached_property
    def alike(self) -> list[Alike]:
        """Groups of rows of similar length."""
        starts = torch.tensor([0, *accumulate(self.lengths)])
        return [self._together(rows, starts) for rows in of_like_length(self.lengths, SPARE)]

    def _together(self, rows: list[int], starts: Tensor) -> Alike:
        lengths, steps = torch.tensor(self.lengths)[rows], torch.arange(self.lengths[rows[0]])
        inside = steps < lengths[:, None]
        tokens = starts[rows][:, None] + steps * inside
        seen = inside[:, None]
        if self.patterned:
            width = len(steps)
            masks = [self.masks[row][0, 0] for row in rows]
            seen = torch.stack([F.pad(m, 2 * (0, width - m.shape[0])) for m in masks])
        elif self.causal:
            seen = seen & (steps <= steps[:, None])
        bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        return Alike(tokens, inside, None if seen.all() else bias)

    @cached_property
    def gathered(self) -> tuple[Tensor, Tensor]:
        """Positions of the tokens of all groups in :attr:`alike`, and each token's place there."""
        tokens = torch.cat([group.tokens.flatten() for group in self.alike])
        there = torch.cat([group.inside.flatten() for group in self.alike]).nonzero()[:, 0]
        return tokens, there[tokens[there].argsort()]

    @cached_property
    def window(self) -> tuple[int, int] | None:
        """Number of tokens before and after itself that a token sees, -1 for all.

        None if two numbers cannot describe the mask, as with attention in chunks.
        """
        if not self.patterned:
            return (-1, 0) if self.causal else (-1, -1)
        rank = self.here.cumsum(1)
        later = (
            rank[:, None] - rank[:, :, None]
        )  # distance from each token to each other token of its row
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
    """Compute attention within packed rows; without a packing, call ``sdpa``.

    Args:
        module: The layer's attention.
        query: Shape ``(1, heads, N, d)``.
        key: Shape ``(1, heads, N, d)``, or with fewer heads that queries share.
        value: Shape of ``key``.
        attention_mask: A :class:`Packing`, or a mask for ``sdpa``.
        dropout: Dropout probability of attention weights.
        scaling: Factor of the scores.
        more: Further arguments of ``sdpa``.

    Returns:
        The output, shape ``(1, N, heads, d)``, and None in place of attention weights.
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
        return _row_by_row(query, key, value, packing, scaling), None
    if way == "alike":
        return _rows_alike(query, key, value, packing, dropout, scaling), None
    q, k, v = (packing.unpack(part.transpose(1, 2)).transpose(1, 2) for part in (query, key, value))
    taken, _ = sdpa_attention_forward(
        module, q, k, v, packing.mask, dropout=dropout, scaling=scaling, **more
    )
    return packing.pack(taken), None


def as_autocast(*parts: Tensor) -> list[Tensor]:
    """Return tensors in the precision of autocast on a GPU, as ``sdpa`` would convert them.

    Autocast does not know the kernel of :func:`in_one_call`, and rotary embeddings of a model in
    single precision return queries and keys in single precision.

    Example:
        >>> as_autocast(torch.ones(1))[0].dtype
        torch.float32
    """
    if not parts[0].is_cuda or not torch.is_autocast_enabled("cuda"):
        return [*parts]
    return [part.to(torch.get_autocast_dtype("cuda")) for part in parts]


def way_of(query: Tensor, value: Tensor, dropout: float, packing: Packing) -> Way:
    """Choose one of the four ways to compute attention."""
    if query.device.type == "cpu":
        return "alike" if dropout else "rows"
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
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float | None
) -> Tensor:
    queries, keys, values = (part.split(packing.lengths, dim=2) for part in (query, key, value))
    none: list[Tensor | None] = [None] * len(packing.lengths)
    masks = [*packing.masks] if packing.patterned else none
    shared = query.shape[1] != key.shape[1]
    taken = [
        F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=packing.causal, scale=scale, enable_gqa=shared
        )
        for q, k, v, mask in zip(queries, keys, values, masks, strict=True)
    ]
    return torch.cat(taken, dim=2).transpose(1, 2).contiguous()


def _rows_alike(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    dropout: float,
    scale: float | None,
) -> Tensor:
    tokens, there = packing.gathered
    shared = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    parts = query * scale, repeat_kv(key, shared), repeat_kv(value, shared)
    sizes = [group.tokens.numel() for group in packing.alike]
    gathered = (part[0].index_select(1, tokens).split(sizes, dim=1) for part in parts)
    taken = []
    for group, *those in zip(packing.alike, *gathered, strict=True):
        q, k, v = (part.unflatten(1, group.tokens.shape) for part in those)
        scores = q @ k.transpose(-1, -2)
        scores = scores if group.bias is None else scores + group.bias
        weights = F.dropout(scores.softmax(-1).to(v.dtype), dropout)
        taken.append((weights @ v).flatten(1, 2))
    return torch.cat(taken, dim=1).transpose(0, 1).index_select(0, there)[None]


def of_like_length(lengths: list[int], spare: int) -> list[list[int]]:
    """Group rows of similar length, the longest first.

    Args:
        lengths: Tokens of each row.
        spare: Largest number of scores, ``T * T`` for ``T`` tokens, wasted on shorter rows.

    Returns:
        Groups of row numbers; each row is in one group.

    Example:
        >>> of_like_length([2, 9, 10, 3], spare=20)
        [[2, 1], [3, 0]]
    """
    groups: list[list[int]] = []
    waste = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        waste += lengths[groups[-1][0]] ** 2 - lengths[row] ** 2 if groups else 0
        if not groups or waste > spare:
            groups.append([])
            waste = 0
        groups[-1].append(row)
    return groups
