# SPDX-License-Identifier: Apache-2.0
"""Record what hftune does, and compare two records: a change of the code that changes nothing.

    python benchmarks/behaviour record old.json --make-runs /somewhere/runs
    python benchmarks/behaviour record new.json --runs /somewhere/runs --jobs 2
    python benchmarks/behaviour compare old.json new.json

Only names that users have are used: the command line, the functions and classes of ``hftune``,
the keys of recipes and the files of run folders. The code recorded is that which ``import hftune``
finds. Times, memory and paths are left out. The sections:

    recipes   resolved recipes
    refusals  messages for faulty recipes, or that they are taken
    curves    losses, metrics and weights of short runs, to the bit
    cli       what commands print
    old_runs  run folders of an earlier version: evaluated, predicted with, loaded, resumed

A record that exists keeps the sections that are not asked for, and with ``--match`` the items whose
keys do not fit. The first record makes the run folders, with the code whose runs must stay usable.
They stay where they are, for adapters name their base by its path.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

SECTIONS = ("recipes", "refusals", "curves", "cli", "old_runs")
PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate")


def prepare_surroundings() -> None:
    """Set what Python and libraries read as they start, and begin anew with it."""
    if os.environ.get("PYTHONHASHSEED") == "0" and os.environ.get("HF_HUB_OFFLINE") == "1":
        return
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "PYTHONHASHSEED": "0",  # sets have one order: that of target_modules is saved
    }
    os.execv(sys.executable, sys.orig_argv)


def listed_names(work: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what ``hftune list`` names."""
    import commands

    done = commands.run(work, ["list", "--json"])
    if done.returncode:
        sys.exit(done.stderr)
    names: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return names


def record(arguments: argparse.Namespace) -> None:
    """Record the sections that were asked for."""
    runs = arguments.make_runs or arguments.runs
    wanted = arguments.only or [name for name in SECTIONS if runs or name != "old_runs"]
    if "old_runs" in wanted and runs is None:
        sys.exit("old_runs: name the run folders: --runs DIR, or --make-runs DIR")
    whole: dict[str, Any] = {"of": {}, "sections": {}}
    if arguments.output.exists():
        whole = json.loads(arguments.output.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="behaviour-") as folder:
        work = Path(folder).resolve()
        os.environ["HFTUNE_CACHE"] = str(work / "cache")
        import curves
        import old_runs
        import sections
        import surface
        import tiny

        import hftune

        surface.quiet_libraries()
        names = listed_names(work)
        if arguments.make_runs:
            old_runs.make(arguments.make_runs.resolve(), names)
        place = surface.Place(work, runs and runs.resolve())
        tiny.build_all(place.tiny)
        if "curves" in wanted:
            with surface.without_pictures():
                surface.attempt(place, lambda: curves.teachers(place))
        for section in wanted:
            began = time.perf_counter()
            items = sections.items(section, place, names)
            chosen = [item for item in items.items()
                      if not arguments.match or re.search(arguments.match, item[0])]  # fmt: skip
            found = dict(sections.record(section, place, chosen, arguments.jobs))
            kept = whole["sections"].get(section, {}) if arguments.match else {}
            whole["sections"][section] = kept | {key: found[key] for key, _ in chosen}
            whole["of"] = {"hftune": hftune.__version__, "commit": commit(hftune.__file__),
                           **{name: version(name) for name in PACKAGES}}  # fmt: skip
            text = json.dumps(whole, indent=1, ensure_ascii=False)
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(text + "\n", encoding="utf-8")
            print(f"{section}: {len(found)} items in {time.perf_counter() - began:.0f} s")


def commit(path: str | None) -> str:
    """Return the commit of the code that was recorded, where git knows it."""
    import subprocess

    folder = Path(str(path)).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> int:
    """Record, or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, dest="verb")
    recorder = verbs.add_parser("record")
    recorder.add_argument("output", type=Path)
    recorder.add_argument("--jobs", type=int, default=1)
    recorder.add_argument("--runs", type=Path, help="Run folders of an earlier version.")
    recorder.add_argument("--make-runs", type=Path, help="Make them here, unless they are there.")
    comparer = verbs.add_parser("compare")
    comparer.add_argument("old", type=Path)
    comparer.add_argument("new", type=Path)
    for verb in (recorder, comparer):
        verb.add_argument("--only", nargs="+", choices=SECTIONS)
        verb.add_argument("--match", help="A regular expression for keys of items.")
    arguments = parser.parse_args()
    if arguments.verb == "record":
        prepare_surroundings()
        record(arguments)
        return 0
    from comparison import compare

    return compare(arguments.old, arguments.new, arguments.only, arguments.match)


if __name__ == "__main__":
    sys.exit(main())
