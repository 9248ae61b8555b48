# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is whole, or it is named and passed over."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hftune.core.errors import HftuneError
from hftune.training import checkpoints
from hftune.training.checkpoints import finalize_checkpoint, find_damage, latest_checkpoint


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(checkpoints, "warn", said.append)
    return said


def checkpoint(folder: Path, step: int) -> Path:
    """Publish a checkpoint with files at two depths."""
    staged = folder / ".staging" / f"checkpoint-{step}"
    (staged / "global").mkdir(parents=True)
    (staged / "model.safetensors").write_bytes(bytes([step % 256]) * 1000)
    (staged / "global" / "rng.pth").write_text(f"random {step}")
    (staged / "empty").touch()
    finalize_checkpoint(staged, folder / f"checkpoint-{step}")
    return folder / f"checkpoint-{step}"


def test_publish(tmp_path: Path) -> None:
    place = checkpoint(tmp_path, 5)
    assert not (tmp_path / ".staging" / "checkpoint-5").exists()
    manifest = json.loads((place / "manifest.json").read_text())
    files = {str(p.relative_to(place)): p for p in place.rglob("*") if p.is_file()}
    del files["manifest.json"]
    assert set(files) == {"model.safetensors", "global/rng.pth", "empty"}
    assert manifest == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    }
    assert find_damage(place) is None


def test_publish_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "leftover").touch()
    assert not (checkpoint(tmp_path, 5) / "leftover").exists()


def test_crash_before_the_rename_leaves_nothing_to_resume_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = checkpoint(tmp_path, 5)

    def crash(*args: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="power cut"):
        checkpoint(tmp_path, 10)
    assert latest_checkpoint(tmp_path) == whole


def test_latest_is_by_number(tmp_path: Path, warnings: list[str]) -> None:
    for step in (90, 1000, 200):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-final").mkdir()
    (tmp_path / "checkpoint-5000.tmp").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-1000"
    assert warnings == []


def flip(place: Path) -> None:
    path = place / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)


def truncate(place: Path) -> None:
    os.truncate(place / "model.safetensors", 999)


def remove(place: Path) -> None:
    (place / "global" / "rng.pth").unlink()


def remove_manifest(place: Path) -> None:
    (place / "manifest.json").unlink()


def truncate_manifest(place: Path) -> None:
    os.truncate(place / "manifest.json", 20)


def empty_manifest(place: Path) -> None:
    os.truncate(place / "manifest.json", 0)


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (flip, "model.safetensors is damaged"),
        (truncate, "model.safetensors is damaged"),
        (remove, "global/rng.pth is missing"),
        (remove_manifest, "it has no readable manifest"),
        (truncate_manifest, "it has no readable manifest"),
        (empty_manifest, "it has no readable manifest"),
    ],
)
def test_damaged_is_named_and_passed_over(
    tmp_path: Path, warnings: list[str], harm: Callable[[Path], None], problem: str
) -> None:
    older, newer = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    harm(newer)
    assert find_damage(newer) == problem
    assert latest_checkpoint(tmp_path) == older
    assert warnings == [f"{newer}: {problem}; passed over"]
    harm(older)
    with pytest.raises(HftuneError, match="no whole checkpoint to resume from\ntrain again"):
        latest_checkpoint(tmp_path)


def test_none_at_all(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(HftuneError, match=f"{folder}: no whole checkpoint to resume from"):
            latest_checkpoint(folder)
