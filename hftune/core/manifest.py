# SPDX-License-Identifier: Apache-2.0
"""Manifest of a folder: sizes and hashes of its files, to detect damage."""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from hftune.core.files import atomic_write_json, sha256_of

FILE = "cache_entry.json"
#: Larger files are hashed once a day, or when their size or modification time differs.
HASHED_EACH_TIME = 32 * 2**20
HASHED_EVERY_SECONDS = 24 * 3600


class FileRecord(TypedDict):
    """Size, hash and modification time of a file at the last check."""

    bytes: int
    sha256: str
    mtime_ns: int


class Manifest(TypedDict):
    """Files of an entry, its description, and the time of the last complete check."""

    about: dict[str, object]
    files: dict[str, FileRecord]
    checked: float


def write_manifest(folder: Path, about: Mapping[str, object] | None) -> None:
    """Sync all files of a folder to the disk, and then write the manifest."""
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
    """Tell whether a folder agrees with its manifest and was written with this description.

    Files are compared with their hashes. Files of more than 32 MiB are hashed only once a day and
    when their size or modification time has changed: hashing a demo model takes longer than loading
    it.

    Returns:
        True or False; None if there is no manifest.

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
    """Compare the files of an entry with its manifest, and record the time of a full check."""
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
    """Return a description after a round trip through JSON, to compare with a stored one."""
    plain: dict[str, object] = json.loads(json.dumps(dict(about or {})))
    return plain
