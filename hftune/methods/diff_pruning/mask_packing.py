# SPDX-License-Identifier: Apache-2.0
"""How a sparse difference lies in its file.

Indices are stored as the steps from one to the next, in the narrowest of 8, 16 and 32 bits that
holds them all. With one weight in 200 kept, that is two bytes beside the four of a value.
"""

import torch
from torch import Tensor

WIDTHS = ((torch.uint8, 2**8), (torch.uint16, 2**16), (torch.uint32, 2**32))


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

    Example:
        >>> steps = torch.tensor([1, 5, 295])
        >>> unpack(steps, torch.ones(3), torch.Size([20, 20]), "weight").tolist()
        [0, 5, 300]
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
