# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent: written under another name, synced, then renamed."""

import hashlib
import json
import os
import tempfile
from pathlib import Path


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or the new one, even after a crash.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     atomic_write(Path(folder) / "a" / "note.txt", "whole")
        ...     (Path(folder) / "a" / "note.txt").read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def atomic_write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON; see :func:`atomic_write`.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     atomic_write_json(Path(folder) / "list.json", [1, 2])
        ...     (Path(folder) / "list.json").read_text().split()
        ['[', '1,', '2', ']']
    """
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
