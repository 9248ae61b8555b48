# SPDX-License-Identifier: Apache-2.0
"""Attention of packed rows: each token sees its own row alone.

Four ways give the same. On a GPU all rows go through one call of PyTorch's kernel for rows of any
length, which is flash attention 2, where it knows the case: half precision, no dropout, every
token, those before, or a window. What it does not know is put back into its padded places for the
length of one call. A CPU takes row by row; with dropout, for which PyTorch has no kernel there, it
takes rows of like length together.
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

#: What adds to the scores of attention, which a call of ours would lose.
UNKNOWN = ("position_bias", "softcap", "s_aux")
#: What the kernel takes: the width of a head at most and in steps of, and the GPU's generation.
WIDEST_HEAD, HEAD_STEP, AMPERE = 256, 8, (8, 0)

#: How many scores a head may waste on padding to save a call: what one costs on a CPU.
SPARE = 1500

Way = Literal["flash", "padded", "rows", "alike"]


@dataclass(frozen=True, eq=False)
class Alike:
    """Rows of like length, which attend in one call.

    Attributes:
        tokens: Of each row, the longest one's number of them, shape ``(g, T)``; where a row is
            shorter its first token stands in.
        inside: Which of them are the row's, shape ``(g, T)``, bool.
        bias: What adds to the scores, shape ``(g, 1 or T, T)``: next to infinity below zero where
            a token is not seen; None if all are.
    """

    tokens: Tensor
    inside: Tensor
    bias: Tensor | None


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
    def alike(self) -> list[Alike]:
        """The rows, those of like length together."""
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
        """The tokens of all that is :attr:`alike`, and among these where each token is."""
        tokens = torch.cat([group.tokens.flatten() for group in self.alike])
        there = torch.cat([group.inside.flatten() for group in self.alike]).nonzero()[:, 0]
        return tokens, there[tokens[there].argsort()]

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
        return _row_by_row(query, key, value, packing, scaling), None
    if way == "alike":
        return _rows_alike(query, key, value, packing, dropout, scaling), None
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
    """Group rows of like length, the longest first.

    Args:
        lengths: Tokens of each row.
        spare: How many scores, ``T * T`` for ``T`` tokens, a group may waste on shorter rows.

    Returns:
        The rows' numbers, each once.
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
