# SPDX-License-Identifier: Apache-2.0
"""Manifest of a folder: sizes and hashes of its files, by which damage is found."""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from hftune.core.files import atomic_write_json, sha256_of

FILE = "cache_entry.json"
#: Larger files are hashed once in so many seconds, or when their size or time of change differ.
HASHED_EACH_TIME = 32 * 2**20
HASHED_EVERY_SECONDS = 24 * 3600


class FileRecord(TypedDict):
    """A file of an entry as it was last found whole."""

    bytes: int
    sha256: str
    mtime_ns: int


class Manifest(TypedDict):
    """The files of an entry, its description, and the time of the last whole check."""

    about: dict[str, object]
    files: dict[str, FileRecord]
    checked: float


def write_manifest(folder: Path, about: Mapping[str, object] | None) -> None:
    """Bring all files of a folder to the disk, and write the manifest behind them."""
    files: dict[str, FileRecord] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            status = path.stat()
            files[path.relative_to(folder).as_posix()] = {
                "bytes": status.st_size,
                "sha256": sha256_of(path),
                "mtime_ns": status.st_mtime_ns,
            }
    manifest: Manifest = {"about": _plain(about), "files": files, "checked": time.time()}
    atomic_write_json(folder / FILE, manifest)


def is_whole(folder: Path, about: Mapping[str, object] | None) -> bool | None:
    """Tell whether a folder is as its manifest says, and was written with this description.

    Files are held against their hashes. Files of more than 32 MiB are hashed once a day, and
    whenever their size or time of change is not that of the last time: SHA-256 of a demo model
    takes longer than loading it.

    Returns:
        None if there is no manifest.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "numbers").write_text("123"), is_whole(folder, None)
        (3, None)
        >>> write_manifest(folder, None)
        >>> is_whole(folder, None)
        True
        >>> (folder / "numbers").write_text("124"), is_whole(folder, None)
        (3, False)
    """
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return False
    try:
        manifest: Manifest = json.loads(text)
        return manifest["about"] == _plain(about) and _is_sound(folder, manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_sound(folder: Path, manifest: Manifest) -> bool:
    """Hold the files of an entry against its manifest, and note the time of a whole check."""
    recently = time.time() - manifest["checked"] < HASHED_EVERY_SECONDS
    hashed = False
    for name, known in manifest["files"].items():
        status = (folder / name).stat()
        if status.st_size != known["bytes"]:
            return False
        as_before = status.st_mtime_ns == known["mtime_ns"]
        if recently and as_before and status.st_size > HASHED_EACH_TIME:
            continue
        if sha256_of(folder / name) != known["sha256"]:
            return False
        hashed |= not (recently and as_before)
        known["mtime_ns"] = status.st_mtime_ns
    if hashed:
        checked = manifest["checked"] if recently else time.time()
        with suppress(OSError):  # the cache of another user can be read, too
            atomic_write_json(folder / FILE, {**manifest, "checked": checked})
    return True


def _plain(about: Mapping[str, object] | None) -> dict[str, object]:
    """What JSON makes of a description, so that a written one equals it."""
    plain: dict[str, object] = json.loads(json.dumps(dict(about or {})))
    return plain
