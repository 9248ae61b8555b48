# SPDX-License-Identifier: Apache-2.0
"""Check that a fresh process gets the run's logits from the files that a push would send.

The process runs the code of the model card, with plain PEFT or Transformers.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from hftune.core.errors import RunError
from hftune.hub.model_card import loading_code
from hftune.methods import method_row
from hftune.models.sample_logits import logits_of
from hftune.models.save import ModelMetadata
from hftune.tasks import make_task

TOLERANCE = 1e-5
INPUTS = "inputs.safetensors"
#: Variables of the launcher, which would make the new process wait for others.
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAUNCHER_PREFIXES = ("ACCELERATE_", "TORCHELASTIC_", "GROUP_", "ROLE_")

ERROR = re.compile(r"[A-Za-z_.]+(Error|Exception|Interrupt)\b")

#: Follows the code of the card, which has created ``model`` and ``tokenizer``.
COMPARISON = """
import json
import torch
from safetensors.torch import load_file

asked = json.load(open("asked.json", encoding="utf-8"))
expected = load_file("logits.safetensors")
inputs = load_file("inputs.safetensors")
if asked["movable"] and torch.accelerator.is_available():
    model.to(torch.accelerator.current_accelerator())
model.eval()
largest = 0.0
with torch.no_grad():
    for index in range(asked["rows"]):
        names = [name for name in inputs if name.startswith(f"{index}.")]
        batch = {name.split(".")[1]: inputs[name].to(model.device) for name in names}
        given = GIVEN
        due = expected[str(index)]
        largest = max(largest, ((given - due).abs().max() / (1 + due.abs().max())).item())
tokens = [tokenizer(text)["input_ids"] for text in asked["texts"]]
json.dump({"difference": largest, "tokens": tokens}, open("answer.json", "w"))
"""


def check_round_trip(
    folder: Path, metadata: ModelMetadata, model: Any, processor: Any, *, adapter: bool
) -> None:
    """Load a folder in a fresh process and compare logits and tokens with the run's.

    Args:
        folder: The files that a push would send.
        metadata: The metadata among them.
        model: The run's model, in evaluation mode and float32.
        processor: The run's processor.
        adapter: Whether the folder holds an adapter; the folder names its base.

    Raises:
        RunError: The folder does not load, or gives other logits or tokens.
    """
    method = method_row(metadata.method)
    task = make_task(metadata.task, metadata.label_names, **metadata.task_options)
    rows = task.sample_inputs(processor)
    tokens = [processor(text)["input_ids"] for text in task.sample_texts]
    with tempfile.TemporaryDirectory(prefix="hftune-") as place:
        here = Path(place)
        save_file(logits_of(model, rows), here / "logits.safetensors")
        named = {f"{i}.{name}": value for i, row in enumerate(rows) for name, value in row.items()}
        save_file({name: value.clone() for name, value in named.items()}, here / INPUTS)
        asked = {
            "rows": len(rows),
            "texts": task.sample_texts,
            "movable": metadata.quantization is None and method.saves != "classifier",
        }
        (here / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        logits = method.resolve().logits_code(metadata)
        lines = loading_code(metadata, adapter=adapter, place=str(folder), dtype="float32")
        done = subprocess.run(
            [sys.executable, "-c", lines + COMPARISON.replace("GIVEN", logits)],
            cwd=here,
            env=_plain_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RunError(
                "a fresh process cannot load what would be sent: " + _last_line(done.stderr),
                hint=_base_hint(metadata) if adapter else None,
            )
        answer = json.loads((here / "answer.json").read_text(encoding="utf-8"))
    if answer["tokens"] != tokens:
        raise RunError("a fresh process reads other tokens out of a text than the run does")
    if not answer["difference"] <= TOLERANCE:
        raise RunError(
            f"a fresh process gives other logits than the run: they differ by "
            f"{answer['difference']:.1e} of the largest, and {TOLERANCE:.0e} is allowed",
            hint=_base_hint(metadata) if adapter else None,
        )


def _base_hint(metadata: ModelMetadata) -> str:
    return (
        f"on another machine the base model is {metadata.base_model} on the Hub: does it hold "
        "the weights that the run started from, and may your token read it?"
    )


def _plain_environment() -> dict[str, str]:
    return {
        key: value
        for key, value in os.environ.items()
        if key not in LAUNCHER and not key.startswith(LAUNCHER_PREFIXES)
    }


def _last_line(text: str) -> str:
    """Return the last error of a traceback, without the advice on later lines."""
    lines = [line for line in text.splitlines() if line.strip()] or ["it said nothing"]
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or lines)[-1].strip()
