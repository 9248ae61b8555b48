# SPDX-License-Identifier: Apache-2.0
"""Every shipped recipe runs on a tiny model for six steps, interrupted and resumed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import hftune
from hftune import HftuneError, Recipe, Run
from hftune.methods import method_row
from tests.stop_at import StopAt

pytestmark = pytest.mark.draws  # as a user's run

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
FITTED = [path for path in RECIPES if method_row(Recipe.load(path).method.name).fitted]
TRAINED = [path for path in RECIPES if path not in FITTED]
SCRIPTS = sorted((ROOT / "recipes" / "custom").glob("*.py"))


@pytest.mark.parametrize("path", FITTED, ids=lambda path: str(path.relative_to(ROOT)))
def test_fitted_recipe_runs_and_repeats(path: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    rows = ["data.max_train_samples=48", "data.max_eval_samples=16", "training.use_cpu=true"]
    folder = f"training.output_dir={tmp_path / 'run'}"
    run = hftune.train(Recipe.load(path, [f"model.path={tiny_encoder}", folder, *rows]))
    again = hftune.train(Recipe.load(run.path / "recipe.yaml", [f"{folder}-again"]))
    assert again.metrics["eval_loss"] == run.metrics["eval_loss"] > 0


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipe_runs_and_resumes(
    path: Path, tiny_encoder: Path, tiny_decoder: Path, tiny_seq2seq: Path, tmp_path: Path
) -> None:
    models = {
        "text-classification": tiny_encoder,
        "text-generation": tiny_decoder,
        "text2text-generation": tiny_seq2seq,
        "token-classification": tiny_encoder,
    }
    overrides = [
        f"model.path={models[Recipe.load(path).task]}",
        f"training.output_dir={tmp_path / 'run'}",
        "training.use_cpu=true",
        "data.max_train_samples=48",
        "data.max_eval_samples=16",
        "training.max_steps=6",
        "training.save_strategy=steps",
        "training.eval_strategy=steps",
        "training.eval_steps=3",
        "training.save_steps=3",
    ]
    if Recipe.load(path).distillation is not None:
        overrides += taught_by_full(path.with_name("full.yaml"), overrides, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        hftune.train(Recipe.load(path, overrides), callbacks=[StopAt(5)])
    run = hftune.train(Run(tmp_path / "run").recipe, resume=True)
    assert run.metrics["eval_loss"] > 0
    with pytest.raises(HftuneError, match="the run is finished"):
        hftune.train(run.recipe, resume=True)


def taught_by_full(path: Path, overrides: list[str], folder: Path) -> list[str]:
    """Train the teacher that the recipe asks for, and return what names it."""
    run = folder / "teacher"
    hftune.train(Recipe.load(path, [*overrides, f"training.output_dir={run}"]))
    return [f"distillation.teacher={run}", "model.keep_layers=[1]"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipe_opens_with_its_command(path: Path) -> None:
    assert path.read_text().startswith(f"# hftune train {path.relative_to(ROOT)}\n")


def test_page_names_every_recipe() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    named = re.findall(r"^\| `(\S+)` \|", page, re.MULTILINE)
    assert sorted(named) == sorted(str(path.relative_to(ROOT / "recipes")) for path in RECIPES)


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_runs_and_importing_it_does_nothing(
    path: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(path), str(tiny_encoder)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "macro F1" in done.stdout
    imported = f"import runpy; runpy.run_path({str(path)!r}, run_name='imported')"
    done = subprocess.run(
        [sys.executable, "-c", imported], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == ""
