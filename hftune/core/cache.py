# SPDX-License-Identifier: Apache-2.0
"""The cache of hftune: whole entries by kind and key, checked on reading, within one size limit.

An entry is a folder ``<root>/<kind>/<key>`` that holds files and a manifest with their sizes and
hashes. It is filled in a folder next to its final one and then renamed, so an entry is whole or
absent. There is no index apart from the manifests: each moves with its entry, so no crash can
separate the two. The folder's modification time is the time of its last use.
"""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hftune.core import manifest
from hftune.core.console import say
from hftune.core.errors import HftuneError

Kind = Literal[
    "schema", "models", "docstrings", "rows", "tokens", "features", "answers", "trunk", "difficulty"
]
#: Kinds of entries, each a folder below the root, and their content.
KINDS: dict[Kind, str] = {
    "schema": "JSON Schemas of recipes",
    "models": "demo models",
    "docstrings": "rows of demo:docstrings",
    "rows": "rows of large files",
    "tokens": "tokens of large splits",
    "features": "vectors of texts",
    "answers": "answers of teachers",
    "trunk": "states of frozen layers",
    "difficulty": "losses of reference models",
}
GIB = 2**30
LIMIT_GIB = 36.0
PARTIAL, GONE = ".partial", ".gone"

#: Entries that this process reads: their folder, open with a shared lock until the process ends.
_in_use: dict[Path, int] = {}
_named: set[Path] = set()


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """An entry, with its size and the time of its last use.

    Attributes:
        place: Its folder, or its file if an earlier version of hftune wrote it.
        kind: Folder in which it lies.
        size: Bytes of all its files.
        used: Time of its last use.
    """

    place: Path
    kind: Kind
    size: int
    used: float

    @property
    def is_whole(self) -> bool:
        """Whether the entry is complete, and not being written or removed."""
        return not self.place.name.startswith(".")


def cache_root() -> Path:
    """Return the folder of the cache: ``$HFTUNE_CACHE`` or ``~/.cache/hftune``."""
    return Path(os.environ.get("HFTUNE_CACHE") or Path.home() / ".cache" / "hftune")


def cache_folder(kind: Kind) -> Path:
    """Return (and create) the folder of a kind of entries."""
    folder = cache_root() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HftuneError(
            f"{folder}: the cache cannot be created: {error.strerror}",
            hint="set HFTUNE_CACHE to a folder that can be written",
        ) from error
    return folder


def cache_limit() -> int:
    """Return the size limit of all entries in bytes. ``$HFTUNE_CACHE_LIMIT`` gives it in GiB.

    Example:
        >>> import os
        >>> os.environ["HFTUNE_CACHE_LIMIT"] = "0.5"
        >>> cache_limit() // 2**20
        512
        >>> del os.environ["HFTUNE_CACHE_LIMIT"]
    """
    given = os.environ.get("HFTUNE_CACHE_LIMIT") or LIMIT_GIB
    with suppress(ValueError):
        if (limit := float(given)) >= 0:
            return int(limit * GIB)
    raise HftuneError(
        f"HFTUNE_CACHE_LIMIT: expected a number of GiB, not {given!r}",
        hint=f"such as HFTUNE_CACHE_LIMIT=10; without it the limit is {LIMIT_GIB:.0f}",
    )


def digest(*parts: object) -> str:
    """Return the key of an entry: a hash of everything that determines its content.

    Example:
        >>> digest("tokens", 1) == digest("tokens", 1) != digest("tokens", 2)
        True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def find(kind: Kind, key: str, about: Mapping[str, object] | None = None) -> Path | None:
    """Return the folder of an entry, and lock it so that no other process removes it.

    The lock lasts until this process ends, so files of the entry can be mapped into memory.
    :func:`until_read` releases it earlier. The files are compared with their hashes; see
    :func:`hftune.core.manifest.is_whole`.

    Args:
        kind: Kind of the entry.
        key: Key of the entry, from :func:`digest`.
        about: Description with which the entry must have been written.

    Returns:
        The folder, or None if the entry is absent or damaged. Damage is reported once.
    """
    place = cache_folder(kind) / key
    if not _hold(place):
        return None
    whole = manifest.is_whole(place, about)
    if whole:
        _touch(place)
        return place
    _release(place)
    if whole is False and place not in _named:
        _named.add(place)
        say(f"{place}: damaged, or not what is expected; it is computed again")
    return None


def write_entry(
    kind: Kind,
    key: str,
    fill: Callable[[Path], object],
    *,
    about: Mapping[str, object] | None = None,
    resumable: bool = False,
) -> Path:
    """Write an entry, whole or not at all, and return its folder.

    If several processes write the same entry, one of them writes it and the others wait.

    Args:
        kind: Kind of the entry.
        key: Key of the entry, from :func:`digest`.
        fill: Function that writes the files into the folder that it gets.
        about: Description to store with the entry, for :func:`find`.
        resumable: Keep the files that ``fill`` wrote before it failed, for the next call.

    Raises:
        OSError: The disk is full or cannot be written to.
    """
    place = cache_folder(kind) / key
    with _locked(kind, key):
        if (found := find(kind, key, about)) is not None:
            return found
        _fill(place, fill, about, resumable=resumable)
        _named.discard(place)
        _hold(place)
        _touch(place)
    _keep_limit()
    return place


def found_or_written(kind: Kind, key: str, fill: Callable[[Path], object]) -> Path:
    """Return the folder of an entry, and write the entry first if it is absent.

    See :func:`find` and :func:`write_entry`.
    """
    return find(kind, key) or write_entry(kind, key, fill)


@contextmanager
def until_read(folder: Path) -> Iterator[Path]:
    """Release an entry after the block; the block must read all of it into memory."""
    try:
        yield folder
    finally:
        _release(folder)


def adopt(kind: Kind, key: str) -> None:
    """Make an entry of a folder that an earlier version of hftune wrote without a manifest."""
    place = cache_folder(kind) / key
    if place.is_dir() and not (place / manifest.FILE).exists():
        with _locked(kind, key), suppress(OSError):
            manifest.write_manifest(place, None)


def entries() -> list[CacheEntry]:
    """Return all entries, the least recently used first."""
    found = []
    for kind in KINDS:
        folder = cache_root() / kind
        for place in folder.iterdir() if folder.is_dir() else ():
            with suppress(FileNotFoundError):  # removed meanwhile
                used = place.stat().st_mtime
                found.append(CacheEntry(place=place, kind=kind, size=_bytes_of(place), used=used))
    return sorted(found, key=lambda entry: entry.used)


def empty() -> tuple[list[CacheEntry], list[CacheEntry]]:
    """Remove all entries that no process uses; return the removed entries and those in use."""
    gone: list[CacheEntry] = []
    used: list[CacheEntry] = []
    for entry in entries():
        (gone if _remove(entry.place) else used).append(entry)
    return gone, used


def _fill(
    place: Path,
    fill: Callable[[Path], object],
    about: Mapping[str, object] | None,
    *,
    resumable: bool,
) -> None:
    """Fill a folder next to that of the entry, and rename it when it is whole."""
    token = "resumed" if resumable else secrets.token_hex(4)
    partial = place.with_name(f".{place.name}.{token}{PARTIAL}")
    for left in place.parent.glob(f".{place.name}.*{PARTIAL}"):  # by a process that was killed
        if left != partial:
            _remove(left)
    partial.mkdir(exist_ok=resumable)
    _hold(partial)
    try:
        fill(partial)
        manifest.write_manifest(partial, about)
        _set_aside(place)
        partial.replace(place)
    except BaseException:
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        _release(partial)


def _keep_limit() -> None:
    """Remove the least recently used entries until the rest is within the limit."""
    found, limit = entries(), cache_limit()
    total = sum(entry.size for entry in found)
    for entry in found:
        if total <= limit:
            return
        if _remove(entry.place):
            total -= entry.size


def _remove(place: Path) -> bool:
    """Remove an entry unless a process uses it; tell whether it is gone."""
    try:
        handle = os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        return True  # another process was faster
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return False
    except OSError:  # a file system without locks: a mapped file outlives its name
        if place.name.endswith(PARTIAL):  # it may be written just now
            os.close(handle)
            return False
    try:
        _set_aside(place)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _set_aside(place: Path) -> None:
    """Rename an entry, so that no process sees half of it, and then delete it."""
    aside = place.parent / f".{place.name.strip('.')}.{secrets.token_hex(4)}{GONE}"
    with suppress(FileNotFoundError):
        place.replace(aside)
    if aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink(missing_ok=True)


def _hold(place: Path) -> bool:
    """Lock a folder so that no other process removes it; tell whether it exists."""
    for known, handle in list(_in_use.items()):
        if not _is_at(known, handle):  # removed by force, or replaced
            _release(known)
    if place in _in_use:
        return True
    try:
        handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # absent, a file of an earlier version, or not ours to read
        return False
    with suppress(OSError):  # a file system without locks
        fcntl.flock(handle, fcntl.LOCK_SH)
    if not _is_at(place, handle):  # removed before the lock was there
        os.close(handle)
        return False
    _in_use[place] = handle
    return True


def _is_at(place: Path, handle: int) -> bool:
    try:
        return os.path.samestat(place.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _touch(place: Path) -> None:
    """Record that an entry is used now, by our clock: that of the file system may be coarse."""
    now = time.time_ns()
    with suppress(OSError):  # the cache of another user can be read, too
        os.utime(place, ns=(now, now))


def _release(place: Path) -> None:
    handle = _in_use.pop(place, None)
    if handle is not None:
        os.close(handle)


def _bytes_of(place: Path) -> int:
    if not place.is_dir():
        return place.stat().st_size
    total = 0
    for top, _, names in os.walk(place):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(top, name)).st_size
    return total


@contextmanager
def _locked(kind: Kind, key: str) -> Iterator[None]:
    """Let one process at a time write an entry; without file locks, each writes a whole one."""
    from filelock import FileLock

    path = cache_root() / "locks" / f"{kind}-{key}.lock"
    lock = FileLock(path)
    held = False
    with suppress(OSError, NotImplementedError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        held = True
    try:
        yield
    finally:
        if held:
            path.unlink(missing_ok=True)  # a waiting process finds the entry written
            lock.release()
