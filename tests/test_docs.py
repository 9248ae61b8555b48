# SPDX-License-Identifier: Apache-2.0
"""What the pages show: every piece of a recipe passes the check, and a faulty one fails as told."""

import re
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hftune import Recipe, RecipeError
from hftune.tasks import TASKS
from hftune.tasks.task import Task

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```ya?ml\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
KEY = re.compile(r"^(\w+):", re.MULTILINE)
#: What a piece of a recipe leaves out.
AROUND = {"model": "m", "data": "rows.csv"}
#: The recipe with faults of this page, and what is said of it.
FAULTY = ROOT / "docs" / "recipe.md"
FAULTS = re.compile(
    r"This recipe has seven:\n\n```yaml\n(.*?)```\n\n```\nerror: (.*?)```", re.DOTALL
)


def alternatives(block: str) -> Iterator[str]:
    """Yield the pieces of a block, which begins anew where a key stands for the second time."""
    seen: set[str] = set()
    start = 0
    for key in KEY.finditer(block):
        if key[1] in seen:
            yield block[start : key.start()]
            start, seen = key.start(), set()
        seen.add(key[1])
    yield block[start:]


def pieces(page: Path) -> list[tuple[int, Any]]:
    """Return line and content of each piece of YAML on a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in BLOCK.finditer(text):
        if page == FAULTY and "text-clasification" in block[2]:
            continue
        line = text.count("\n", 0, block.start()) + 1
        content = re.sub(f"^{block[1]}", "", block[2], flags=re.MULTILINE)
        found += [(line, YAML(typ="safe").load(piece)) for piece in alternatives(content)]
    return found


@pytest.mark.parametrize(
    "page", [page for page in PAGES if pieces(page)], ids=lambda page: page.relative_to(ROOT)
)
def test_pieces_of_recipes_pass_the_check(page: Path) -> None:
    """With the task that they name, or with one of all."""
    for line, tree in pieces(page):
        if tree is None:
            continue  # a comment for editors
        problems = []
        for task in [tree["task"]] if "task" in tree else TASKS:
            try:
                Recipe(**{"task": task, **AROUND, **tree})
            except RecipeError as error:
                problems.append(str(error))
            else:
                break
        else:
            pytest.fail(f"{page.name}:{line}: {min(problems, key=len)}")


def test_a_recipe_with_faults_is_told_what_the_page_says(tmp_path: Path) -> None:
    recipe, said = FAULTS.findall(FAULTY.read_text(encoding="utf-8"))[0]
    (tmp_path / "tickets.yaml").write_text(recipe, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        Recipe.load(tmp_path / "tickets.yaml")
    assert str(caught.value).replace(f"{tmp_path}/", "").strip() == said.strip()


def test_the_picture_of_the_packages_shows_the_imports() -> None:
    """``python docs/development/draw_packages.py`` draws it anew."""
    script = ROOT / "docs/development/draw_packages.py"
    spec = spec_from_file_location("draw_packages", script)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.drawn_imports() == module.package_imports()


def test_the_tutorial_names_every_answer_of_a_task() -> None:
    page = (ROOT / "docs/development/add_a_task.md").read_text("utf-8")
    assert [name for name in Task.__abstractmethods__ if f"`{name}`" not in page] == []
