# SPDX-License-Identifier: Apache-2.0
"""Processes that find different things go the same way."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hftune.core.processes import found_or_computed, on_all_processes

ONE = cast(Any, SimpleNamespace(world_size=1))
#: Has a place of its own, where the first of two processes has something and the other nothing.
PROCESS = """
import sys
from pathlib import Path
from types import SimpleNamespace
import torch.distributed as dist
from hftune.core.processes import found_or_computed, on_all_processes
rank, folder, shared = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "shared"
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
arguments = SimpleNamespace(world_size=2, process_index=rank)
place = folder / ("0" if shared else str(rank))
def find():
    return place.read_text() if place.exists() else None
def make():
    assert rank == 0
    (folder / "0").write_text("made")
print(found_or_computed(arguments, find, make, "found"), on_all_processes(arguments, True))
print(found_or_computed(arguments, find, make, "found"), on_all_processes(arguments, rank == 0))
"""


def test_one_process_asks_nobody() -> None:
    made: list[str] = []
    find = lambda: made[0] if made else None  # noqa: E731
    assert found_or_computed(ONE, find, lambda: made.append("made"), "found") == "made"
    assert found_or_computed(ONE, find, lambda: made.append("again"), "found") == "made"
    assert made == ["made"]
    assert found_or_computed(ONE, lambda: None, lambda: None, "found") is None
    assert on_all_processes(ONE, True)
    assert not on_all_processes(ONE, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "there", "says"),
    [("shared", False, "made True\nmade False\n"), ("own", True, "None True\nNone False\n")],
)
def test_two_processes_go_the_same_way(tmp_path: Path, place: str, there: bool, says: str) -> None:
    """With places of their own the first finds something, the other never does."""
    if there:
        (tmp_path / "0").write_text("made")
    ran = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path), place],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [process.communicate(timeout=120)[0] for process in ran] == [says, says]
    assert [process.returncode for process in ran] == [0, 0]
