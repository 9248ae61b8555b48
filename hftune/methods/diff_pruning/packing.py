# SPDX-License-Identifier: Apache-2.0
"""How a sparse difference lies in its file, and how a file is known to belong to a base.

Indices are stored as the steps from one to the next, in the narrowest of 8, 16 and 32 bits that
holds them all. With one weight in 200 kept, that is two bytes beside the four of a value.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

WIDTHS = ((torch.uint8, 2**8), (torch.uint16, 2**16), (torch.uint32, 2**32))
#: Weights of the base that are remembered, and how far each may be off: bfloat16 has 8 bits.
SAMPLES = 64
TOLERANCE = 2**-7
#: Share of the remembered weights that must agree.
AGREEMENT = 0.95


def pack(indices: Tensor) -> Tensor:
    """Return ascending indices as steps, the first from -1.

    Example:
        >>> pack(torch.tensor([0, 5, 300])).tolist()
        [1, 5, 295]
    """
    steps = indices.diff(prepend=indices.new_tensor([-1]))
    largest = int(steps.max()) if len(steps) else 0
    width = next(dtype for dtype, limit in WIDTHS if largest < limit)
    return steps.to(width)


def unpack(packed: Tensor | None, values: Tensor | None, shape: torch.Size, name: str) -> Tensor:
    """Return the indices of a stored difference.

    Args:
        packed: What :func:`pack` returned.
        values: Its values.
        shape: Of the weight that it belongs to.
        name: How errors call it.

    Raises:
        ValueError: The file lacks it, or it cannot be a difference to such a weight.
    """
    if packed is None or values is None:
        raise ValueError(f"the adapter file lacks {name}: it is damaged, or for another model")
    indices = packed.to(torch.int64).cumsum(0) - 1
    if len(indices) != len(values):
        raise ValueError(f"the adapter file has {len(indices)} indices and {len(values)} values "
                         f"for {name}: it is damaged")  # fmt: skip
    ascending = bool((packed.to(torch.int64) > 0).all())
    if not ascending or (len(indices) and int(indices[-1]) >= shape.numel()):
        raise ValueError(
            f"the adapter file has indices for {name} that a weight of shape {tuple(shape)} has "
            "not: it is damaged, or for another model"
        )
    if not values.isfinite().all():
        raise ValueError(f"the adapter file has values for {name} that are not finite")
    return indices


def fingerprint(weights: Sequence[Tensor]) -> str | None:
    """Return some of the base's weights, spread over all, as bfloat16 in hex; None on meta."""
    if not weights or any(weight.device.type == "meta" for weight in weights):
        return None
    return bytes(_sample(weights).view(torch.uint8).tolist()).hex()


def check_base(expected: str | None, weights: Sequence[Tensor]) -> None:
    """Compare a base with the one that an adapter was trained on.

    A base in another floating-point type passes; one of other training does not.

    Raises:
        ValueError: It is another one.
    """
    if expected is None or not weights or any(w.device.type == "meta" for w in weights):
        return
    then = torch.tensor(list(bytes.fromhex(expected)), dtype=torch.uint8).view(torch.bfloat16)
    now = _sample(weights)
    close = (now.float() - then.float()).abs() <= TOLERANCE * then.float().abs()
    if close.float().mean() < AGREEMENT:
        raise ValueError(
            "this base model is not the one that the difference was trained on: "
            f"{int((~close).sum())} of {len(close)} compared weights differ"
        )


def _sample(weights: Sequence[Tensor]) -> Tensor:
    sizes = torch.tensor([weight.numel() for weight in weights])
    ends = sizes.cumsum(0)
    picks = torch.linspace(0, int(ends[-1]) - 1, SAMPLES, dtype=torch.float64).long()
    owners = torch.searchsorted(ends, picks, right=True)
    starts = ends - sizes
    numbers = [
        weights[int(owner)].detach().reshape(-1)[int(pick - starts[owner])].float().cpu()
        for owner, pick in zip(owners, picks, strict=True)
    ]
    return torch.stack(numbers).to(torch.bfloat16)
