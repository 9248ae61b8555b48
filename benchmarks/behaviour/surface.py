# SPDX-License-Identifier: Apache-2.0
"""A recipe tried, a run folder read: by the public names of hftune alone, without paths and times.

What is recorded is plain JSON. Floats are written in hexadecimal, so that equal means equal bits.
"""

import functools
import hashlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMES = re.compile(r"runtime|per_second|peak_memory|peak_gpu")
#: Lines that tell of time, of memory, or of what a library does once in a process.
PASSING = re.compile(
    r"^step \d|training time|tokens per second|peak memory|memory for training|Loading weights"
    r"|Writing model shards|Reading the fields of|kernels-community|%\|"
    r"|embedding time|fitting time"
    r'|^ *"sha256": "'  # of a probe: its archive holds the hour
)
TEXTS = {".yaml", ".json", ".jsonl", ".md", ".jinja", ".txt"}
#: What differs from machine to machine, is large and not hftune's, or is recorded otherwise.
UNREAD = {"environment.json", "tokenizer.json", "manifest.json", "metrics.json", "log.jsonl"}

# Thousands of recipes ask for the same versions; to read them takes as long as all the rest.
importlib.metadata.version = functools.cache(importlib.metadata.version)


@dataclass(frozen=True)
class Place:
    """Where a recording works.

    Attributes:
        work: A folder of its own, empty at first.
        runs: Run folders that an earlier version left, with their models and rows.
    """

    work: Path
    runs: Path | None = None

    @property
    def tiny(self) -> Path:
        """The models and rows of this recording."""
        return self.work / "tiny"

    def plain(self, text: str) -> str:
        """Return a text without the paths of this machine."""
        folders = [
            (self.work, "<work>"),
            (self.runs, "<runs>"),
            (imported(), "<repository>"),
            (Path(sys.prefix), "<environment>"),
            (Path.home(), "<home>"),
        ]
        for folder, name in folders:
            if folder is not None:
                text = text.replace(str(folder), name)
        return text


def imported() -> Path:
    """Return the folder that hftune was imported from, which has its recipes."""
    import hftune

    return Path(str(hftune.__file__)).resolve().parents[1]


@contextmanager
def box(place: Place, name: str) -> Iterator[Path]:
    """Give a folder of a name that never changes, with a cache of its own; it is removed then."""
    folder = place.work / "boxes" / hashlib.sha256(name.encode()).hexdigest()[:12]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shared = place.work / "cache" / "schema"
    if shared.is_dir():
        shutil.copytree(shared, folder / "cache" / "schema")
    before = os.environ.get("HFTUNE_CACHE", "")
    os.environ["HFTUNE_CACHE"] = str(folder / "cache")
    try:
        yield folder
    finally:
        os.environ["HFTUNE_CACHE"] = before
        shutil.rmtree(folder, ignore_errors=True)


def attempt(place: Place, work: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """Do something, and return what was said, or what was refused, beside what came of it."""
    import hftune

    words, result = io.StringIO(), None
    found: dict[str, Any] = {}
    with redirect_stderr(words), redirect_stdout(words):
        try:
            result = work()
        except hftune.HftuneError as error:
            found["refused"] = f"{type(error).__name__}: {place.plain(str(error))}"
        except KeyboardInterrupt:
            found["interrupted"] = True
        except Exception as error:  # a fault is behaviour, too
            found["failed"] = f"{type(error).__name__}: {place.plain(str(error))}"
    found["said"] = said(place, words.getvalue())
    return found, result


def said(place: Place, text: str) -> str:
    """Return what was printed, without what passes."""
    before, fault, trace = text.partition("Traceback (most recent call last):")
    if fault:  # its lines tell of the code, and the last one of what happened
        text = f"{before}{fault}\n{trace.strip().splitlines()[-1]}"
    lines = [line.rstrip() for line in place.plain(text).replace("\r", "\n").splitlines()]
    return "\n".join(line for line in lines if line and not PASSING.search(line))


def exact(value: Any) -> Any:
    """Return a value with its floats in hexadecimal and without what tells of time."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {str(k): exact(v) for k, v in value.items() if not TIMES.search(str(k))}
    if isinstance(value, list | tuple):
        return [exact(item) for item in value]
    return value


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_run(place: Place, folder: Path) -> dict[str, Any]:
    """Return all that a run folder tells and that the same run would tell again."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path: path.relative_to(folder).as_posix() for path in files}
    found: dict[str, Any] = {"files": list(names.values())}
    log = folder / "log.jsonl"
    if log.exists():
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        found["losses"] = [exact(line["loss"]) for line in lines if "loss" in line]
        found["log"] = [exact(line) for line in lines]
    if (metrics := folder / "metrics.json").exists():
        found["metrics"] = exact(json.loads(metrics.read_text(encoding="utf-8")))
    found["weights"] = {
        names[path]: digest(path) for path in files if path.suffix == ".safetensors"
    }
    found["texts"] = {
        names[path]: _text(place, path)
        for path in files
        if path.suffix in TEXTS and path.name not in UNREAD and "checkpoints" not in path.parts
    }
    return found


def _text(place: Place, path: Path) -> str:
    lines = place.plain(path.read_text(encoding="utf-8")).splitlines()
    return "\n".join(line for line in lines if not PASSING.search(line))


def trained(place: Place, name: str, sections: dict[str, Any], **given: Any) -> dict[str, Any]:
    """Train a recipe in a box, and return what was said and what the run folder tells."""
    import hftune

    with box(place, name) as folder:
        sections = {
            **sections,
            "training": {**sections.get("training", {}), "output_dir": str(folder / "run")},
        }
        found, _ = attempt(place, lambda: hftune.train(hftune.Recipe(**sections), **given))
        if (folder / "run").is_dir():
            found |= read_run(place, folder / "run")
    return found


@functools.cache
def quiet_libraries() -> None:
    """Keep libraries from saying things once a process, one thread, and no pictures."""
    import gc
    import warnings

    import torch
    import transformers

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    gc.collect()
    gc.freeze()


@contextmanager
def without_pictures() -> Iterator[None]:
    """Let matplotlib write no files: drawing takes as long as a tiny run."""
    from matplotlib.figure import Figure

    before = Figure.savefig
    Figure.savefig = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Figure.savefig = before  # type: ignore[method-assign]
