# SPDX-License-Identifier: Apache-2.0
"""Section ``cli``: help, lists, schema, and what some verbs print, as a terminal sees them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from surface import TEXTS, Place, box, said

VERBS = ("init", "check", "train", "lr_find", "evaluate", "predict", "chat", "explain", "export",
         "push", "list", "schema", "doctor")  # fmt: skip
KINDS = ("tasks", "methods", "losses", "optimizers", "schedules", "initializations", "samplings",
         "difficulties", "pacings", "regularizations", "recipes", "accelerate", "models",
         "data")  # fmt: skip
CHECK = """\
task: TASK
model: MODEL
data: {path: DATA, max_length: 24}
method: {name: lora, r: 4}
training: {output_dir: FOLDER/run, use_cpu: true, max_steps: 5}
"""


def items(place: Place, names: Any) -> dict[str, list[str]]:
    """Return what is typed, by its key; ``<tiny>`` and ``<box>`` are filled in."""
    commands = [[], ["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)]
    commands += [["list"], ["list", "--json"], *(["list", kind] for kind in KINDS)]
    commands += [["list", "nothing"], ["schema"], ["nothing"], ["train"]]
    for rows in ("labelled.jsonl", "chat.jsonl", "tagged.jsonl", "pairs.jsonl", "numbered.jsonl"):
        commands.append(["init", f"<tiny>/{rows}", "--yes", "--output", "<box>/mine.yaml",
                         "--model", "<tiny>/encoder"])  # fmt: skip
    commands += [
        ["check", "<box>/classify.yaml"],
        ["check", "<box>/write.yaml", "method.r=8"],
        ["check", "<box>/classify.yaml", "method.rr=8"],
        ["train", "<box>/write.yaml", "training.max_steps=2"],
        ["train", "<box>/nothing.yaml"],
        ["train", "<box>/classify.yaml", "--resume"],
        ["train", "<box>/classify.yaml", "--num-processes", "2"],
        ["train", "<box>/classify.yaml", "--mixed-precision", "bf16"],
        ["train", "<box>/classify.yaml", "--accelerate", "nothing"],
        ["evaluate", "<box>", "<tiny>/labelled.jsonl"],
        ["export", "<box>", "--output", "<box>/out", "--weights", "a"],
        ["lr_find", "<box>/write.yaml", "--steps", "5"],
        ["lr_find", "<box>/write.yaml", "--steps", "10"],
    ]
    return {" ".join(["hftune", *command]): command for command in commands}


def record(place: Place, key: str, command: list[str]) -> dict[str, Any]:
    """Type a command; return what it printed, its exit code, and the files that it wrote."""
    with box(place, f"cli {key}") as folder:
        for name, task, model, rows in (
            ("classify", "text-classification", "encoder", "labelled"),
            ("write", "text-generation", "decoder", "chat"),
        ):
            text = CHECK.replace("TASK", task).replace("FOLDER", str(folder))
            text = text.replace("MODEL", str(place.tiny / model))
            text = text.replace("DATA", str(place.tiny / f"{rows}.jsonl"))
            (folder / f"{name}.yaml").write_text(text)
        filled = [
            word.replace("<tiny>", str(place.tiny)).replace("<box>", str(folder))
            for word in command
        ]
        done = run(folder, filled)
        files = sorted(path for path in folder.glob("*") if path.suffix in TEXTS)
        return {
            "code": done.returncode,
            "out": _out(place, done.stdout),
            "err": said(place, done.stderr),
            "files": {
                path.name: place.plain(path.read_text(encoding="utf-8"))
                for path in files
                if path.name != "schema.json"
            },
        }


def run(folder: Path, command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run hftune in a folder, with a terminal of a width that is always the same."""
    import hftune

    surroundings = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    surroundings["PYTHONPATH"] = str(Path(str(hftune.__file__)).resolve().parents[1])
    return subprocess.run(
        [sys.executable, "-m", "hftune", *command],
        capture_output=True, text=True, check=False, cwd=folder, env=surroundings,
    )  # fmt: skip


def _out(place: Place, text: str) -> Any:
    try:
        return json.loads(place.plain(text))
    except ValueError:
        return said(place, text)
