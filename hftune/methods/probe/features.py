# SPDX-License-Identifier: Apache-2.0
"""Texts as vectors of a frozen trunk, computed once for a content and found again."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from numpy.typing import NDArray
from transformers import DataCollator

from hftune.core import cache
from hftune.core.console import say
from hftune.core.files import sha256_of
from hftune.data.arrow import column_array, lengths
from hftune.data.row_digest import rows_key
from hftune.models.pooling import Pooling, features
from hftune.tasks.inference import batches_by_length

#: Part of the cache's key: raise it when features are computed differently.
FEATURES_VERSION = 1
FEATURES_FILE = "features.npy"


def weights_fingerprint(location: str, commit: str | None) -> str:
    """Return a text that changes with a model's weights: the Hub's commit, or hashes of the files.

    Args:
        location: Hub id or folder.
        commit: Of the Hub repository.

    Example:
        >>> weights_fingerprint("google/bert", "0a1b")
        'google/bert@0a1b'
    """
    folder = Path(location)
    if not folder.is_dir():
        return f"{location}@{commit}"
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()


def features_key(rows: Dataset, **decides: object) -> str:
    """Return the digest of all that decides the features of rows.

    Args:
        rows: Tokens; labels do not count.
        decides: What else does, such as weights, pooling and layer.
    """
    versions = [FEATURES_VERSION, torch.__version__, transformers.__version__]
    return rows_key(rows, sorted(set(rows.column_names) - {"labels"}), versions, decides)


def cached_features(key: str, compute: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return features out of the cache, or compute them and keep them.

    Args:
        key: See :func:`features_key`.
        compute: Returns the features, shape ``(rows, D)``.
    """

    def fill(folder: Path) -> None:
        np.save(folder / FEATURES_FILE, compute(), allow_pickle=False)

    with cache.until_read(cache.found_or_written("features", key, fill)) as folder:
        found: NDArray[np.float32] = np.load(folder / FEATURES_FILE, allow_pickle=False)
    return found


def embed(
    trunk: Any,
    rows: Dataset,
    collate: DataCollator,
    *,
    pooling: Pooling,
    layer: int,
    batch_size: int,
) -> NDArray[np.float32]:
    """Run the trunk once over all rows, longest first, and return their features in their order.

    Args:
        trunk: In evaluation mode.
        rows: Tokens.
        collate: Makes a batch.
        pooling: What becomes of a row's tokens.
        layer: Index of ``hidden_states``.
        batch_size: Rows a batch.

    Returns:
        Float32, shape ``(rows, D)``.
    """
    tokens = rows.select_columns([name for name in rows.column_names if name != "labels"])
    sizes = lengths(column_array(tokens, "input_ids")).tolist()
    say(f"embedding {len(rows)} rows, once for this content")
    found: NDArray[np.float32] | None = None
    for indices in batches_by_length(sizes, batch_size, "embedding"):
        batch: Any = collate([tokens[index] for index in indices])
        with torch.inference_mode():
            read = features(trunk, dict(batch.to(trunk.device)), pooling, layer).cpu().numpy()
        if found is None:
            found = np.empty((len(rows), read.shape[1]), dtype=np.float32)
        found[indices] = read
    assert found is not None
    return found
