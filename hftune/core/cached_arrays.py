# SPDX-License-Identifier: Apache-2.0
"""Arrays with items for each row, such as a teacher's answers, kept in the cache.

An entry has one file for each array. The files are mapped into memory.
"""

import hashlib
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hftune.core import cache

MIB = 2**20


@dataclass(frozen=True)
class ArrayLayout:
    """Positions and shapes of the items of each row.

    Attributes:
        kind: Kind of entries in the cache.
        starts: Index of the first item of each row, then the number of items, ``(rows + 1,)``.
        parts: Name of an array -> type and shape of one of its items.

    Example:
        >>> pair = np.dtype("float32"), (2,)
        >>> layout = ArrayLayout("answers", np.array([0, 3, 5]), {"logits": pair})
        >>> layout.items, layout.bytes_of("logits"), layout.size
        (5, 8, 40)
    """

    kind: cache.Kind
    starts: NDArray[np.int64]
    parts: Mapping[str, tuple[np.dtype, tuple[int, ...]]]

    @property
    def items(self) -> int:
        """Number of items of all rows."""
        return int(self.starts[-1])

    def bytes_of(self, part: str) -> int:
        """Return the size in bytes of one item of an array."""
        dtype, shape = self.parts[part]
        return int(dtype.itemsize * math.prod(shape))

    @property
    def size(self) -> int:
        """Bytes of all items."""
        return self.items * sum(map(self.bytes_of, self.parts))

    def room(self) -> str | None:
        """Return why the arrays do not fit on the disk or in the cache; None if they fit."""
        folder = cache.cache_folder(self.kind)
        limit = min(shutil.disk_usage(folder).free, cache.cache_limit())
        if self.size < limit:
            return None
        return f"they take {self.size / MIB:,.0f} MiB, and {folder} has room for {limit / MIB:,.0f}"

    def about(self) -> dict[str, object]:
        """Return the description of the arrays for the manifest."""
        return {
            "starts": hashlib.sha256(self.starts.tobytes()).hexdigest(),
            "parts": {
                name: [dtype.name, self.items, *shape]
                for name, (dtype, shape) in self.parts.items()
            },
        }


class CachedArrays:
    """Arrays of a cache entry; items are read from the disk when they are needed.

    Args:
        folder: Folder of the entry, already checked.
        layout: Layout with which the arrays were written.
    """

    def __init__(self, folder: Path, layout: ArrayLayout) -> None:
        self.starts = layout.starts
        self.parts = {
            name: np.memmap(folder / name, dtype, "r", shape=(layout.items, *shape))
            for name, (dtype, shape) in layout.parts.items()
            if layout.items
        }

    def of_rows(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the items of these rows, in their order, by the name of the array."""
        places = [np.arange(self.starts[row], self.starts[row + 1]) for row in rows]
        chosen = np.concatenate(places) if places else np.zeros(0, dtype=np.int64)
        return {name: torch.from_numpy(part[chosen]) for name, part in self.parts.items()}


def read_arrays(key: str, layout: ArrayLayout) -> CachedArrays | None:
    """Return the arrays of a key; None if they are absent, damaged or of another layout."""
    folder = cache.find(layout.kind, key, layout.about())
    return None if folder is None else CachedArrays(folder, layout)


def write_arrays(
    key: str,
    layout: ArrayLayout,
    batches: Iterable[tuple[Sequence[int], Mapping[str, Tensor]]],
) -> None:
    """Write the items of all rows, whole or not at all.

    Args:
        key: Key of the entry, from :func:`hftune.core.cache.digest`.
        layout: Positions and shapes of the items.
        batches: Pairs of row numbers and the items of these rows by the name of the array.

    Raises:
        OSError: The disk is full or cannot be written to.
    """

    def fill(folder: Path) -> None:
        with ExitStack() as opened:
            files = {
                name: opened.enter_context((folder / name).open("wb")) for name in layout.parts
            }
            for rows, items in batches:
                counts = [int(layout.starts[row + 1] - layout.starts[row]) for row in rows]
                for name, file in files.items():
                    dtype, _ = layout.parts[name]
                    values = items[name].cpu().numpy().astype(dtype)
                    for row, piece in zip(
                        rows, np.split(values, np.cumsum(counts)[:-1]), strict=True
                    ):
                        file.seek(int(layout.starts[row]) * layout.bytes_of(name))
                        file.write(piece.tobytes())

    cache.write_entry(layout.kind, key, fill, about=layout.about())
