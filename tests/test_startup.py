# SPDX-License-Identifier: Apache-2.0
"""Help and a mistake in a recipe answer without importing torch; training starts without plots."""

import ast
import gc
import subprocess
import sys
from pathlib import Path

import pytest

from hftune.cli.terminal import verb

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys
sys.argv = ["hftune", *sys.argv[1:]]
from hftune.cli import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "peft", "datasets", "accelerate", "sklearn", "matplotlib"}
    print("heavy:", sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--help"], 0, "Fine-tune Hugging Face models from short recipes"),
        (["train", "--help"], 0, "--resume"),
        (["--version"], 0, "0.1.0"),
        (["chat", "--help"], 0, "--temperature"),
        (["doctor", "--help"], 0, "--json"),
        (["export", "--help"], 0, "--combination"),
        (["init", "--help"], 0, "--column"),
        (["list"], 0, "adalora"),
        (["list", "optimizers", "--json"], 0, '"name": "adamw_torch"'),
        (["schema"], 0, "json-schema.org/draft/2020-12"),
        (["train", "{recipe}"], 2, "method.rank: unknown key; did you mean r?"),
        (["train", "nowhere.yaml"], 2, "no such recipe"),
    ],
)
def test_answers_without_torch(arguments: list[str], code: int, says: str, tmp_path: Path) -> None:
    from hftune.recipe.json_schema import recipe_schema

    recipe_schema()  # the cache is there, as after the first use
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "task: text-classification\nmodel: demo:minilm\ndata: demo:docstrings\n"
        "method: {name: lora, rank: 8}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(item.format(recipe=recipe) for item in arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert says in done.stdout + done.stderr
    assert "heavy: []" in done.stdout


def imported_at_once(module: str) -> set[str]:
    """Return what a module of hftune imports at its top, and so on down; TYPE_CHECKING does not."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = ROOT / name.replace(".", "/")
        files = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()]
        for node in ast.parse(files[0].read_text("utf-8")).body if files else ():
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting.append(node.module)
                waiting += [
                    f"{node.module}.{a.name}" for a in node.names if "hftune" in node.module
                ]
    return seen


@pytest.mark.parametrize("name", ["train", "check", "predict", "evaluate"])
def test_verbs_draw_and_measure_later(name: str) -> None:
    tops = imported_at_once(f"hftune.commands.{name}")
    assert "torch" in tops
    heavy = ("sklearn", "matplotlib", "scipy.stats", "trl", "captum", "bitsandbytes")
    assert not [top for top in sorted(tops) if top.startswith(heavy)]


FAULTS = """
import resource
from hftune.cli.terminal import verb
verb("doctor")
import torch
torch.zeros(12_000_000)
begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(12_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)
"""
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not LARGE_PAGES.exists() or "[madvise]" not in LARGE_PAGES.read_text(),
    reason="the system gives no large pages, or gives them unasked",
)
@pytest.mark.parametrize(("said", "large"), [(None, True), ("0", False)])
def test_a_verb_asks_for_large_pages_unless_the_environment_says_otherwise(
    said: str | None, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """46 MiB are 11,719 pages of 4 KiB, and mostly pages of 2 MiB where those are asked for."""
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    if said is not None:
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", said)
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    assert (int(done.stdout) < 6_000) == large


def test_what_a_verb_imports_is_kept_for_good() -> None:
    gc.unfreeze()
    try:
        assert verb("doctor").__name__ == "doctor"
        assert gc.isenabled()
        assert gc.get_freeze_count() > 100_000
    finally:
        gc.unfreeze()
