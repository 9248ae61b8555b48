# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or absent: written beside, given a manifest of hashes, renamed."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from hftune.core.console import warn
from hftune.core.errors import HftuneError
from hftune.core.files import atomic_write_json, sha256_of

MANIFEST = "manifest.json"
STAGING = ".staging"
NAME = re.compile(r"checkpoint-(\d+)")


def publish(staged: Path, place: Path) -> None:
    """Give a staged checkpoint its manifest, sync it to disk, and rename it into place."""
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    manifest = {str(path.relative_to(staged)): sha256_of(path) for path in files}
    atomic_write_json(staged / MANIFEST, manifest)
    shutil.rmtree(place, ignore_errors=True)
    staged.rename(place)
    _sync(place.parent)


def damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None when every file is as it was written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "it has no readable manifest"
    for name, digest in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256_of(path) != digest:
            return f"{name} is damaged"
    return None


def latest_checkpoint(folder: Path) -> Path:
    """Return the newest whole checkpoint; damaged ones are named and passed over.

    Raises:
        HftuneError: There is none.
    """
    found = [path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name)]
    for path in sorted(found, key=lambda path: -int(path.name.rpartition("-")[2])):
        problem = damage(path)
        if problem is None:
            return path
        warn(f"{path}: {problem}; passed over")
    raise HftuneError(
        f"{folder}: no whole checkpoint to resume from",
        hint="train again without --resume, into a fresh folder",
    )


def kept_in(checkpoint: str, name: str) -> dict[str, Tensor]:
    """Return what a file of a checkpoint holds; nothing where it is not there."""
    path = Path(checkpoint) / name
    return load_file(path) if path.is_file() else {}


class FindBest(TrainerCallback):
    """Finds the best checkpoint of a resumed run where the run lies now.

    The state remembers a path, which means nothing after a move or from another folder; the step
    that it also remembers does.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the path anew."""
        if state.best_global_step:
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(best) if best.is_dir() else None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
