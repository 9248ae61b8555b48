# SPDX-License-Identifier: Apache-2.0
"""Python in processes of their own that find torch loaded, which is most of what a start costs.

A server loads packages that read no variable of the Hub, and forks for each command. The command
has arguments, variables and streams of its own, and imports all the rest itself.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

LOADED = (
    "torch._inductor.select_algorithm", "bitsandbytes", "pandas", "pyarrow.parquet", "scipy.stats",
)  # fmt: skip


class WarmPython:
    """Runs commands as ``subprocess.run`` does, one after the other."""

    def __enter__(self) -> "WarmPython":
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *error: object) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()

    def run(
        self, *command: str, env: dict[str, str], cwd: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Return how a command ended, and what it said.

        Args:
            command: ``-m``, ``-c`` or a script, and arguments, as after ``python``.
            env: All variables.
            cwd: Where it runs.
        """
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            said = [Path(folder) / name for name in ("out", "err")]
            asked = {"command": command, "env": env, "cwd": str(cwd or Path.cwd())}
            self.server.stdin.write(json.dumps({**asked, "said": list(map(str, said))}) + "\n")
            self.server.stdin.flush()
            code = int(self.server.stdout.readline())
            return subprocess.CompletedProcess(command, code, *(path.read_text() for path in said))


def serve() -> dict[str, Any] | None:
    """Fork for each line; return in the child what was asked, and None at the end of the lines."""
    for name in LOADED:
        import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return dict(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


def become(asked: dict[str, Any]) -> None:
    """Do what ``python`` does with a command."""
    streams = [
        (os.devnull, os.O_RDONLY),
        *((path, os.O_WRONLY | os.O_CREAT) for path in asked["said"]),
    ]
    for number, (path, mode) in enumerate(streams):
        os.dup2(os.open(path, mode), number)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    what, *rest = asked["command"]
    sys.path[0] = "" if what in ("-c", "-m") else str(Path(what).parent)
    if what == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [what, *rest]
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    found = serve()
    if found is not None:
        become(found)
