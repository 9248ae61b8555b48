# SPDX-License-Identifier: Apache-2.0
"""SFT with LoRA beside other trainers, each through its own front door and in its own environment.

    python benchmarks/peers.py                       # every side, three rounds
    python benchmarks/peers.py --sides trl hftune --rounds 1
    python benchmarks/peers.py --data self_instruct=PAIRS.jsonl
    python benchmarks/peers.py --threads 2 --rounds 1      # by the clock on the wall

All sides train the same LoRA on SmolLM2-135M in float32, on the same pairs of prompt and completion
in the same order, once, with as many threads; the loss counts completions alone. Rows are those of
``demo:docstrings``, or of a file of JSON lines with ``prompt`` and ``completion``. Rounds alternate
between the sides; each run is a process of its own (``benchmarks/peers_side.py``) that tells real
tokens (no padding) per second after the first WARM steps, of the CPU with one thread and on the
wall with more, and the most memory above the loaded model. Packages of the peers are installed at
first use into ``--environments``. A round that is kept is not run again. The machine may be shared:
read the ratios.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from fidelity.cells import RESULTS, Cell, Cells

from hftune.cli.terminal import LARGE_PAGES

SETTINGS: dict[str, Any] = {
    "model": "demo:smollm2",
    "rows": 200,
    "batch": 8,
    "max_length": 256,
    "warm": 2,
    "rate": 1e-4,
    "r": 8,
    "lora_alpha": 16,
}
CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
TRL = ["trl==1.16.0", "transformers", "peft", "accelerate", "datasets"]
#: LLaMA-Factory pins releases that are older than the tested set.
LLAMAFACTORY = [
    "transformers==5.6.0", "peft==0.18.1", "accelerate==1.11.0", "datasets==4.0.0", "trl==0.24.0",
    "av<=16", "einops", "fastapi", "fire", "gradio<=5.50.0", "hf-transfer", "matplotlib",
    "modelscope", "omegaconf", "pandas", "protobuf", "pyyaml", "scipy", "sentencepiece",
    "sse-starlette", "tiktoken", "tyro<0.9.0", "uvicorn",
]  # fmt: skip
#: Sides, and whose environment they run in.
SIDES = {
    "trainer": None,
    "trl": "trl",
    "trl packed": "trl",
    "llamafactory": "llamafactory",
    "hftune": None,
    "llamafactory default": "llamafactory",
    "hftune checkpointed": None,
}
#: Ours over theirs: tokens a second at least, memory at most.
TARGETS = {
    ("hftune", "trainer"): (2.1, 0.52),
    ("hftune", "trl"): (2.1, 0.6),
    ("hftune", "trl packed"): (2.1, None),
    ("hftune", "llamafactory"): (1.8, None),
    ("hftune checkpointed", "llamafactory default"): (2.5, 1.0),
}


def main() -> None:
    """Measure the rounds that are missing, and say what they show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="docstrings", metavar="NAME=FILE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS / "peers.json")
    default = Path.home() / ".cache" / "hftune" / "peers"
    parser.add_argument("--environments", type=Path, default=default)
    options = parser.parse_args()
    data, _, file = options.data.partition("=")
    cells = Cells(options.results, SETTINGS)
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        task = prepare(Path(folder), file, options.threads)
        for number in range(options.rounds):
            for side in options.sides:
                cells.measure(
                    lambda side=side: run_side(side, task, options.environments),
                    data=data, threads=options.threads, side=side, round=number,
                )  # fmt: skip
    measured = dict.fromkeys((cell["data"], cell["threads"]) for cell in cells.all())
    cells.tell({f"{data}, threads: {n}": summary(cells, data, n) for data, n in measured})


def prepare(folder: Path, file: str, threads: int) -> Path:
    """Write the rows and what all sides have to do, and return the file that says it."""
    from transformers import AutoTokenizer

    from hftune.models.demo_models import demo_model_path

    model = demo_model_path(SETTINGS["model"].removeprefix("demo:"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs = pairs_of(file) if file else docstrings()
    Random(0).shuffle(pairs)
    kept: list[dict[str, str]] = []
    for pair in pairs:
        length = len(tokenizer(pair["prompt"] + pair["completion"]).input_ids) + 1
        if length <= SETTINGS["max_length"]:  # so that no side cuts another way than the others
            kept.append(pair)
        if len(kept) == SETTINGS["rows"]:
            break
    files = {"file": kept, "validation": pairs[-1:]}
    for name, part in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in part))
    task = folder / "task.json"
    paths = {name: str(folder / f"{name}.jsonl") for name in files}
    told = SETTINGS | {"model": str(model), "threads": threads} | paths
    task.write_text(json.dumps(told))
    return task


def docstrings() -> list[dict[str, str]]:
    """Return signatures with the summaries of their docstrings."""
    from hftune.data.docstrings import conversation, docstring_rows

    turns = map(conversation, docstring_rows())
    return [{"prompt": asked["content"] + "\n", "completion": answer["content"]}
            for *_, asked, answer in turns]  # fmt: skip


def pairs_of(file: str) -> list[dict[str, str]]:
    """Return the pairs of a file of JSON lines; a prompt ends with a line's end."""
    rows = map(json.loads, Path(file).read_text().splitlines())
    return [{"prompt": row["prompt"].rstrip() + "\n", "completion": row["completion"].strip()}
            for row in rows]  # fmt: skip


def run_side(side: str, task: Path, environments: Path) -> Cell:
    """Return what one side measures in a process of its own."""
    name = SIDES[side]
    python = sys.executable if name is None else str(environment(name, environments / name))
    command = [python, str(Path(__file__).with_name("peers_side.py")), side, str(task)]
    variables = {**os.environ, **(LARGE_PAGES if side.startswith("hftune") else {})}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if ran.returncode:
        raise SystemExit(f"{side}: {ran.stderr[-3000:]}")
    cell: Cell = json.loads(ran.stdout.splitlines()[-1])
    return cell


def environment(name: str, folder: Path) -> Path:
    """Return the Python of an environment that has a peer; make it if it is not there."""
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return python
    print(f"installing {name} into {folder}", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    install = [str(python), "-m", "pip", "install", "--quiet"]
    torch = ["-c", str(CONSTRAINTS), "torch==2.13.0"]
    subprocess.run([*install, *torch, *(TRL if name == "trl" else [])], check=True)
    if name == "llamafactory":
        subprocess.run([*install, *LLAMAFACTORY], check=True)
        # Its torchaudio would bring a torch for another device; only its name is imported.
        subprocess.run(
            [*install, "--no-deps", "llamafactory==0.9.5", "torchdata<=0.11.0"], check=True
        )
        found = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        site = subprocess.run(found, check=True, capture_output=True, text=True).stdout.strip()
        audio = Path(site) / "torchaudio"
        audio.mkdir()
        (audio / "__init__.py").write_text('"""Nothing: no audio is read."""\n')
    (folder / "ready").touch()
    return python


def summary(cells: Cells, data: str, threads: int) -> dict[str, Any]:
    """Return medians of each side, and ours against the others'."""
    speed_of = "tokens_per_cpu_second" if threads == 1 else "tokens_per_second"
    figures = (speed_of, "megabytes_above_model")
    told: dict[str, Any] = {}
    for side in SIDES:
        kept = cells.all(data=data, threads=threads, side=side)
        if kept:
            told[side] = {figure: median(cell[figure] for cell in kept) for figure in figures}
            told[side] |= {"rounds": len(kept)}
    all_of_them = cells.all(data=data, threads=threads)
    told["tokens of a side"] = sorted({cell["tokens"] for cell in all_of_them})
    for (ours, theirs), (speed, memory) in TARGETS.items():
        if ours in told and theirs in told:
            ratios = {key: round(told[ours][key] / told[theirs][key], 2) for key in figures}
            told[f"{ours} / {theirs}"] = ratios | {"targets": [speed, memory]}
    return told


if __name__ == "__main__":
    main()
