# SPDX-License-Identifier: Apache-2.0
"""What a frozen model says of rows, on the disk: plain numbers, mapped into memory, or not there.

A folder a key: a file of numbers for each part of an answer, and a manifest, written last, with
their hashes. What is damaged, or not as expected, counts as absent and is computed again.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hftune.core.console import say
from hftune.core.files import atomic_write_json, cache_folder, sha256_of

MANIFEST = "manifest.json"
MIB = 2**20
#: All of one cache together; the longest unused go first.
MOST_BYTES = 16 * 2**30


@dataclass(frozen=True)
class Layout:
    """Where the answers to each row stand, and what one is.

    Attributes:
        cache: Name of the folder in hftune's cache.
        starts: First item of each row, and the number of all behind the last, ``(rows + 1,)``.
        parts: Part of an answer -> type and shape of one item's.
    """

    cache: str
    starts: NDArray[np.int64]
    parts: Mapping[str, tuple[np.dtype, tuple[int, ...]]]

    @property
    def items(self) -> int:
        """How many there are."""
        return int(self.starts[-1])

    def bytes_of(self, part: str) -> int:
        """Return how many bytes one item of a part has."""
        dtype, shape = self.parts[part]
        return int(dtype.itemsize * math.prod(shape))

    @property
    def size(self) -> int:
        """Bytes of all items."""
        return self.items * sum(map(self.bytes_of, self.parts))

    def room(self) -> str | None:
        """Return what there is no room for, in words; None where there is room."""
        folder = cache_folder(self.cache)
        limit = min(shutil.disk_usage(folder).free, MOST_BYTES)
        if self.size < limit:
            return None
        return f"they take {self.size / MIB:,.0f} MiB, and {folder} has room for {limit / MIB:,.0f}"


class Kept:
    """What was kept, read as they are needed.

    Args:
        folder: Checked.
        layout: As they were written.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.starts = layout.starts
        self.parts = {
            name: np.memmap(folder / name, dtype, "r", shape=(layout.items, *shape))
            for name, (dtype, shape) in layout.parts.items()
            if layout.items
        }

    def of_rows(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return part -> the items of these rows, one behind the other."""
        places = [np.arange(self.starts[row], self.starts[row + 1]) for row in rows]
        chosen = np.concatenate(places) if places else np.zeros(0, dtype=np.int64)
        return {name: torch.from_numpy(part[chosen]) for name, part in self.parts.items()}


def read_kept(key: str, layout: Layout) -> Kept | None:
    """Return what is kept under a key; None where it is absent, damaged or of another layout."""
    folder = cache_folder(layout.cache) / key
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = manifest == _manifest(folder, layout)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        whole = False
    if not whole:
        say(f"{folder}: damaged, or not what is expected; it is computed again")
        return None
    with suppress(OSError):  # another's cache is read, too
        os.utime(folder)  # used now
    return Kept(folder, layout)


def keep(
    key: str,
    layout: Layout,
    batches: Iterable[tuple[Sequence[int], Mapping[str, Tensor]]],
) -> None:
    """Write what a model says, whole or not at all.

    Args:
        key: Digest of all that decides them.
        layout: Where each stands.
        batches: Rows, and part -> their items, one row behind the other.

    Raises:
        OSError: The disk is full, or cannot be written.
    """
    place = cache_folder(layout.cache) / key
    with tempfile.TemporaryDirectory(prefix=f".{key[:8]}.", dir=place.parent) as beside:
        partial = Path(beside) / "whole"
        partial.mkdir()
        with ExitStack() as opened:
            files = {
                name: opened.enter_context((partial / name).open("wb")) for name in layout.parts
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
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        atomic_write_json(partial / MANIFEST, _manifest(partial, layout))
        shutil.rmtree(place, ignore_errors=True)
        partial.replace(place)
    _drop_oldest(place.parent, keep=place)


def _manifest(folder: Path, layout: Layout) -> dict[str, object]:
    """What there is, and what was expected."""
    return {
        "starts": hashlib.sha256(layout.starts.tobytes()).hexdigest(),
        "parts": {
            name: {
                "dtype": dtype.name,
                "shape": [layout.items, *shape],
                "sha256": sha256_of(folder / name),
                "bytes": (folder / name).stat().st_size,
            }
            for name, (dtype, shape) in layout.parts.items()
        },
    }


def _drop_oldest(folder: Path, keep: Path) -> None:
    places = [place for place in folder.iterdir() if (place / MANIFEST).exists()]
    total = 0
    for place in sorted(places, key=lambda one: (one != keep, -one.stat().st_mtime)):
        total += sum(file.stat().st_size for file in place.iterdir())
        if total > MOST_BYTES and place != keep:
            shutil.rmtree(place, ignore_errors=True)
