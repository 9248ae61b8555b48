# SPDX-License-Identifier: Apache-2.0
"""The findings are true here, and on machines where something is broken on purpose."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hftune.commands import doctor as module
from hftune.commands.doctor import Finding, report
from hftune.core import cache

SECRET = "hf_" + "s" * 34
ROOT = Path(__file__).parents[2]


class Answer(BaseHTTPRequestHandler):
    """Answers every HEAD, as the Hub does."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run_doctor(*options: str, path: Path | None = None, **variables: str) -> tuple[int, str]:
    """Run the command in a process of its own; ``path`` comes first on its PYTHONPATH."""
    environment = {**os.environ, **variables}
    folders = [str(path)] if path else []
    environment["PYTHONPATH"] = os.pathsep.join([*folders, str(ROOT)])
    environment.pop("HF_TOKEN", None) if "HF_TOKEN" not in variables else None
    done = subprocess.run(
        [sys.executable, "-m", "hftune", "doctor", *options],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert SECRET not in done.stdout + done.stderr
    return done.returncode, done.stdout


def by_name(output: str) -> dict[str, dict[str, str]]:
    return {finding["about"]: finding for finding in json.loads(output)}


def test_a_sound_machine(hub: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    code, output = run_doctor(
        "--json", HF_HUB_OFFLINE="0", HF_ENDPOINT=hub, HF_TOKEN=SECRET, HFTUNE_CACHE=str(tmp_path)
    )
    found = by_name(output)
    assert code == 0
    assert {"ok", "note"} >= {finding["state"] for finding in found.values()}
    assert found["torch"]["verdict"] == version("torch")
    assert found["hub"]["verdict"] == f"{hub} answers"
    assert found["hub token"]["verdict"] == "there is one"
    assert found["cache"]["verdict"].startswith(str(tmp_path))
    assert found["cache"]["verdict"].endswith("0.0 GiB of at most 36")
    assert "cache models" not in found
    assert found["imports"]["state"] == "ok"
    assert ("gpu 0" in found) == torch.cuda.is_available()


def fake_version(folder: Path, name: str, number: str) -> None:
    info = folder / f"{name}-{number}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")


def test_a_broken_machine(tmp_path: Path) -> None:
    """A torch that cannot be loaded, versions outside of the bounds, no cache, no Hub."""
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so: no such file')")
    fake_version(tmp_path, "rich", "99.0")
    fake_version(tmp_path, "gguf", "0.1")
    code, output = run_doctor(
        "--json", path=tmp_path, HFTUNE_CACHE="/dev/null/x",
        HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9",
    )  # fmt: skip
    found = by_name(output)
    assert code == 1
    for about in ("imports", "devices"):
        assert found[about]["state"] == "broken"
        assert "libcudart.so: no such file" in found[about]["verdict"]
    assert found["rich"]["state"] == "warning"
    assert found["rich"]["verdict"].startswith("99.0 lies outside of what was tested")
    assert found["rich"]["remedy"].startswith("pip install 'rich")
    assert found["extra demo"]["verdict"] == "lacks gguf"
    assert found["extra demo"]["remedy"] == "pip install 'hftune[demo]'"
    assert found["cache"]["state"] == "broken"
    assert "HFTUNE_CACHE" in found["cache"]["remedy"]
    assert "http://127.0.0.1:9 cannot be reached" in found["hub"]["verdict"]
    assert found["bitsandbytes"]["state"] == "warning"


def test_the_cache_is_shown_and_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFTUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("HFTUNE_CACHE_LIMIT", "0.5")
    for key in "abc":
        folder = cache.write_entry(
            "rows", key, lambda place: (place / "file").write_bytes(bytes(2**20))
        )
        if key != "c":
            cache._release(folder)
    found = {finding.about: finding.verdict for finding in module._folders()}
    assert found["cache"] == f"{tmp_path}, 0.0 GiB of at most 0.5"
    assert found["cache rows"] == "rows of large files: 3 entries, 3.0 MiB"
    (emptied,) = module._emptied()
    assert emptied.verdict == "removed 2 entries, 2.0 MiB; 1 entry stays: a run uses it"
    assert [entry.place.name for entry in cache.entries()] == ["c"]
    monkeypatch.setenv("HFTUNE_CACHE_LIMIT", "small")
    assert next(module._folders()).state == "broken"


def test_the_flag_empties_first(tmp_path: Path) -> None:
    (tmp_path / "models" / "old").mkdir(parents=True)
    code, output = run_doctor("--json", "--empty-cache", HFTUNE_CACHE=str(tmp_path))
    assert code == 0
    found = by_name(output)
    assert next(iter(found)) == "emptied cache"
    assert found["emptied cache"]["verdict"] == "removed 1 entry, 0.0 MiB"
    assert "cache models" not in found


def test_bounds_are_those_of_the_project() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {text.partition(">")[0].replace(".", "-").replace("_", "-").lower()
             for text in project["dependencies"]}  # fmt: skip
    found = {item.name.replace(".", "-").replace("_", "-") for item in module._requirements(None)}
    assert found <= named


def test_missing_package_and_scarce_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needed = module.Requirement("no-such-package>=1.5,<2")
    monkeypatch.setattr(module, "_requirements", lambda extra: [needed])
    missing = list(module._packages())[1]
    assert (missing.state, missing.remedy) == ("broken", "pip install 'no-such-package<2,>=1.5'")
    free = module.SCARCE_GIB * module.GIB - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert module._space("disk", tmp_path).state == "warning"


def test_report_for_people() -> None:
    findings = [
        Finding(about="a", state="ok", verdict="fine"),
        Finding(about="bcd", state="broken", verdict="gone", remedy="get it"),
    ]
    assert report(findings) == (
        "ok      a    fine\nbroken  bcd  gone\n             -> get it\n\nbroken: bcd"
    )
    assert report(findings[:1]).endswith("hftune can work here")
