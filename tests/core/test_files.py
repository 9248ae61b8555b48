# SPDX-License-Identifier: Apache-2.0
"""Files are whole or absent, readable as the umask says, and hashed right."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from hftune.core.files import atomic_write, atomic_write_json, sha256_of


def test_creates_folders_and_replaces(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b" / "note.txt"
    atomic_write(place, "old")
    atomic_write(place, "grün\n")
    assert place.read_bytes() == "grün\n".encode()
    atomic_write(place, b"\x00\xff")
    assert place.read_bytes() == b"\x00\xff"
    assert list(place.parent.iterdir()) == [place]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_crash_leaves_the_old_file_and_no_partial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    place = tmp_path / "state.json"
    place.write_text("old")

    def crash(*args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os if step == "fsync" else Path, step, crash)
    with pytest.raises(OSError, match="no space left"):
        atomic_write(place, "new and longer")
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def test_old_file_is_untouched_until_the_new_one_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "state.json"
    place.write_text("old")
    seen = []
    sync = os.fsync

    def spy(handle: int) -> None:
        seen.append((place.read_text(), os.fstat(handle).st_size))
        sync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    atomic_write(place, "new!")
    assert seen == [("old", 4)]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_what_open_would_give(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        atomic_write(tmp_path / "ours", "x")
        (tmp_path / "plain").write_text("x")
        assert os.umask(umask) == umask, "the umask is left as it was"
    finally:
        os.umask(before)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"naïve": [1, None, 2.5], "b": {"c": "d"}}
    atomic_write_json(tmp_path / "value.json", value)
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "naïve" in text
    assert text.endswith("}\n")


def test_sha256_of(tmp_path: Path) -> None:
    content = os.urandom(3 * 2**18 + 7)
    (tmp_path / "blob").write_bytes(content)
    assert sha256_of(tmp_path / "blob") == hashlib.sha256(content).hexdigest()
