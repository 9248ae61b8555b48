# SPDX-License-Identifier: Apache-2.0
"""Entries of the cache are whole, checked, written once, and removed in the order of their use."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hftune.core import cache, cached_arrays, manifest
from hftune.core.errors import HftuneError

Fill = Callable[[Path], object]
SIZE = 10_000


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HFTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HFTUNE_CACHE_LIMIT", raising=False)
    return tmp_path / "cache"


def content(text: str) -> Fill:
    return lambda folder: (folder / "file").write_text(text)


def add(key: str) -> Path:
    """Write an entry of ``SIZE`` bytes and some, and do not use it."""
    with cache.until_read(cache.write_entry("rows", key, content("x" * SIZE))) as folder:
        return folder


def keys(kind: cache.Kind = "rows") -> set[str]:
    return {path.name for path in cache.cache_folder(kind).iterdir()}


def in_a_process(code: str) -> "subprocess.Popen[str]":
    code = f"from pathlib import Path\nfrom hftune.core import cache\nimport sys, time\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_the_root(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_folder("rows") == root / "rows"
    assert (root / "rows").is_dir()
    monkeypatch.setenv("HFTUNE_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder("rows") == tmp_path / ".cache" / "hftune" / "rows"
    monkeypatch.setenv("HFTUNE_CACHE", "/dev/null/x")
    with pytest.raises(HftuneError, match=r"cannot be created.*\n.*set HFTUNE_CACHE"):
        cache.cache_folder("rows")


@pytest.mark.parametrize("given", ["much", "-1", "nan"])
def test_a_limit_that_is_none(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_limit() == 36 * 2**30
    monkeypatch.setenv("HFTUNE_CACHE_LIMIT", given)
    with pytest.raises(HftuneError, match="expected a number of GiB"):
        cache.cache_limit()


def test_an_entry_is_written_once_and_found_by_kind_and_key() -> None:
    assert cache.find("rows", "a") is None
    folder = cache.found_or_written("rows", "a", content("one"))
    assert (folder / "file").read_text() == "one"
    assert cache.found_or_written("rows", "a", pytest.fail) == folder
    assert cache.write_entry("rows", "a", pytest.fail) == folder
    assert cache.find("tokens", "a") is None
    assert keys() == {"a"}


@pytest.mark.parametrize("fault", [OSError("no space left"), KeyboardInterrupt("stop")])
@pytest.mark.parametrize("step", ["fill", "fsync", "replace"])
def test_a_fault_before_the_rename_leaves_nothing(
    step: str, fault: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*args: object) -> None:
        raise fault

    with monkeypatch.context() as patched:
        if step != "fill":
            patched.setattr(os if step == "fsync" else Path, step, crash)
        with pytest.raises(type(fault), match=str(fault)):
            cache.write_entry("rows", "a", crash if step == "fill" else content("half"))
    assert keys() == set()
    assert cache.find("rows", "a") is None
    assert (cache.write_entry("rows", "a", content("whole")) / "file").read_text() == "whole"


def test_a_killed_process_leaves_nothing_that_is_read(root: Path) -> None:
    """Killed between the last byte and the rename; the next writer sweeps away what was left."""
    child = in_a_process(
        "import os, signal\n"
        "def fill(folder):\n"
        "    (folder / 'file').write_text('half')\n"
        "    Path.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cache.write_entry('rows', 'a', fill)\n"
    )
    child.communicate(timeout=60)
    assert child.returncode == -9
    (left,) = keys()
    assert left.startswith(".a.")
    assert cache.find("rows", "a") is None
    cache.write_entry("rows", "a", content("whole"))
    assert keys() == {"a"}
    assert list((root / "locks").iterdir()) == []


def test_what_was_written_before_a_fault_is_resumed() -> None:
    def broken(folder: Path) -> None:
        (folder / "first").write_text("1")
        raise OSError("no space left")

    for resumable, kept in ((False, []), (True, ["first"])):
        with pytest.raises(OSError, match="no space"):
            cache.write_entry("rows", "a", broken, resumable=resumable)
        found: list[str] = []
        cache.write_entry(
            "rows",
            "a",
            lambda folder, found=found: found.extend(path.name for path in folder.iterdir()),
            resumable=resumable,
        )
        assert found == kept
        assert keys() == {"a"}
        with cache.until_read(cache.cache_folder("rows") / "a"):
            pass
        cache.empty()


@pytest.mark.parametrize("process_is_new", [False, True])
@pytest.mark.parametrize("size", [100, manifest.HASHED_EACH_TIME + 100])
def test_a_flipped_byte_is_named_once_and_computed_anew(
    size: int, process_is_new: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cache.write_entry("rows", "a", content("x" * size))
    with (folder / "file").open("r+b") as file:
        file.seek(size // 2)
        file.write(b"y")
    if process_is_new:
        cache._release(folder)
    assert cache.find("rows", "a") is None
    assert cache.find("rows", "a") is None
    assert capsys.readouterr().err.count("damaged, or not what is expected") == 1
    cache.write_entry("rows", "a", content("x" * size))
    assert (folder / "file").read_text() == "x" * size
    assert cache.find("rows", "a") == folder
    assert capsys.readouterr().err == ""


def flip_as_a_disk_does(file: Path) -> None:
    """Change a byte, and neither size nor time of change."""
    before = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"y")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_small_files_are_hashed_each_time_and_large_ones_once_a_day(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manifest, "HASHED_EACH_TIME", 100)
    small = cache.write_entry("rows", "small", content("x" * 100))
    large = cache.write_entry("rows", "large", content("x" * 101))
    for folder in (small, large):
        flip_as_a_disk_does(folder / "file")
    assert cache.find("rows", "small") is None
    assert cache.find("rows", "large") == large
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + manifest.HASHED_EVERY_SECONDS + 1)
    assert cache.find("rows", "large") is None


def test_a_day_later_a_whole_file_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "HASHED_EACH_TIME", 0)
    cache.write_entry("rows", "a", content("x"))
    hashed: list[Path] = []
    plain = manifest.sha256_of
    monkeypatch.setattr(manifest, "sha256_of", lambda path: hashed.append(path) or plain(path))
    now = time.time()
    for later in (10, manifest.HASHED_EVERY_SECONDS + 10, manifest.HASHED_EVERY_SECONDS + 20):
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        assert cache.find("rows", "a")
    assert len(hashed) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "file").unlink(),
        lambda folder: (folder / "file").write_text("xx"),
        lambda folder: (folder / manifest.FILE).write_text("{}"),
        lambda folder: (folder / manifest.FILE).write_text("[1"),
        lambda folder: (folder / manifest.FILE).write_bytes(b"\xff"),
    ],
)
def test_other_damage(damage: Fill, capsys: pytest.CaptureFixture[str]) -> None:
    damage(cache.write_entry("rows", "a", content("x")))
    assert cache.find("rows", "a") is None
    assert "it is computed again" in capsys.readouterr().err
    assert (cache.write_entry("rows", "a", content("x")) / "file").read_text() == "x"


def test_another_description_is_not_what_is_expected(capsys: pytest.CaptureFixture[str]) -> None:
    cache.write_entry("rows", "a", content("x"), about={"shape": (1, 2)})
    assert cache.find("rows", "a", {"shape": [1, 2]})
    assert capsys.readouterr().err == ""
    assert cache.find("rows", "a", {"shape": [2, 1]}) is None
    assert "not what is expected" in capsys.readouterr().err


def test_a_folder_of_an_earlier_version_is_absent_until_it_is_adopted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = cache.cache_folder("models") / "a"
    place.mkdir()
    (place / "file").write_text("x")
    assert cache.find("models", "a") is None
    cache.adopt("models", "a")
    assert cache.find("models", "a") == place
    assert capsys.readouterr().err == ""
    assert [entry.place for entry in cache.entries()] == [place]


def limit(entries: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so many of the entries that :func:`add` writes have room."""
    monkeypatch.setenv("HFTUNE_CACHE_LIMIT", str(entries * (SIZE + 300) / cache.GIB))


def test_the_longest_unused_go_first_and_the_limit_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(3.5, monkeypatch)
    for key in "abc":
        add(key)
    used = cache.find("rows", "a")
    assert used is not None
    cache._release(used)
    add("d")
    assert keys() == {"a", "c", "d"}
    with cache.until_read(cache.write_entry("tokens", "e", content("x" * 2 * SIZE))):
        pass  # all kinds have one limit
    assert (keys(), keys("tokens")) == ({"d"}, {"e"})
    assert sum(entry.size for entry in cache.entries()) <= cache.cache_limit()


def test_files_of_earlier_versions_and_partial_folders_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit(2.5, monkeypatch)
    (cache.cache_folder("rows") / "old.arrow").write_text("x" * SIZE)
    (cache.cache_folder("rows") / ".k.1234.partial").mkdir()
    (cache.cache_folder("rows") / ".k.1234.partial" / "file").write_text("x" * SIZE)
    time.sleep(0.02)
    add("a")
    add("b")
    assert keys() == {"a", "b"}


def test_an_entry_that_another_process_reads_stays_and_then_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reader opens the file only when two others have pushed its entry beyond the limit."""
    limit(1.5, monkeypatch)
    add("read")
    reader = in_a_process(
        "folder = cache.find('rows', 'read')\n"
        "print('found', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(len((folder / 'file').read_text()))\n"
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "found\n"
    add("b")
    add("c")
    assert keys() == {"read", "c"}
    assert [entry.place.name for entry in cache.empty()[1]] == ["read"]
    assert reader.communicate("\n", timeout=60)[0] == f"{SIZE}\n"
    add("d")
    assert keys() == {"d"}


def test_an_entry_that_this_process_uses_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(0, monkeypatch)
    mine = cache.write_entry("rows", "mine", content("x" * SIZE))
    add("other")
    assert keys() == {"mine", "other"}, "what was just written is read before it goes"
    add("third")
    assert keys() == {"mine", "third"}
    assert (mine / "file").stat().st_size == SIZE


def test_two_processes_write_once() -> None:
    """The second waits for the first and finds what it wrote."""
    code = (
        "def fill(folder):\n"
        "    print('fills', flush=True)\n"
        "    time.sleep(1)\n"
        "    (folder / 'file').write_text('x')\n"
        "folder = cache.write_entry('rows', 'a', fill)\n"
        "print((folder / 'file').read_text())\n"
    )
    processes = [in_a_process(code) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(said) == ["fills\nx\n", "x\n"]
    assert keys() == {"a"}


def test_without_locks_both_write_and_one_stays(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    """Some file systems have no locks; whole entries need none."""

    def refused(*args: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    monkeypatch.setattr("fcntl.flock", refused)

    def fill(folder: Path) -> None:
        (folder / "file").write_text("outer")
        cache.write_entry("rows", "a", content("inner"))  # the other process is as fast

    folder = cache.write_entry("rows", "a", fill)
    assert (folder / "file").read_text() == "outer"
    assert cache.find("rows", "a") == folder
    assert keys() == {"a"}


def test_emptying(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """What lies beside hftune's own folders is not touched."""
    (root / "mine").mkdir(parents=True)
    (root / "mine" / "file").write_text("x")
    for key in "ab":
        add(key)
    gone, used = cache.empty()
    assert [entry.place.name for entry in gone] == ["a", "b"]
    assert used == cache.entries() == []
    assert (root / "mine" / "file").exists()


# Arrays


def layout(starts: list[int]) -> cached_arrays.ArrayLayout:
    parts = {"x": (np.dtype(np.float32), (2,)), "n": (np.dtype(np.int64), ())}
    return cached_arrays.ArrayLayout("answers", np.array(starts), parts)


def batches() -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Rows of 2, 0 and 1 items, in another order than theirs."""
    yield [2, 1], {"x": torch.tensor([[5.0, 6.0]]), "n": torch.tensor([3])}
    yield [0], {"x": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "n": torch.tensor([1, 2])}


def test_arrays_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    made = layout([0, 2, 2, 3])
    assert cached_arrays.read_arrays("k", made) is None
    cached_arrays.write_arrays("k", made, batches())
    found = cached_arrays.read_arrays("k", made)
    assert found is not None
    assert isinstance(found.parts["x"], np.memmap)
    items = found.of_rows([2, 0, 1])
    assert items["x"].tolist() == [[5, 6], [1, 2], [3, 4]]
    assert items["n"].tolist() == [3, 1, 2]
    assert found.of_rows([])["n"].tolist() == []
    assert cached_arrays.read_arrays("k", layout([0, 1, 1, 3])) is None
    assert made.size == 3 * (8 + 8)
    assert made.room() is None
    monkeypatch.setenv("HFTUNE_CACHE_LIMIT", str(47 / cache.GIB))
    assert str(made.room()).startswith("they take 0 MiB, and ")
