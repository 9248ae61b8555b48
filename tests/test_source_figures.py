# SPDX-License-Identifier: Apache-2.0
"""Figures of the source that may only fall: decoded summaries, loose types, long functions.

``python tests/test_source_figures.py`` prints them, with the places behind each.
"""

import ast
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: Base names of files that may stand in several packages: each means the same in all of them.
SHARED_BASE_NAMES = {"__init__", "section", "rules", "row", "config", "layer", "model", "method"}
#: A verb of commands/ and the loop of runs/ that it calls.
SHARED_BASE_NAMES |= {"evaluate", "predict"}
#: A package holds at most so many files beside its sub-packages.
MAX_FILES = 25
LONG, VERY_LONG = 40, 60

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Source:
    """One file below hftune/."""

    path: Path
    tree: ast.Module

    @property
    def place(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    def documented(self) -> Iterator[tuple[str, int, str]]:
        """Yield the name, line and docstring of the module and of all it defines."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Module | Definition) and (text := ast.get_docstring(node)):
                yield getattr(node, "name", "module"), getattr(node, "lineno", 1), text

    def public(self) -> Iterator[Definition]:
        """Yield public functions and classes."""
        for node in self.tree.body:
            if isinstance(node, Definition) and not node.name.startswith("_"):
                yield node

    def functions(self) -> Iterator[ast.FunctionDef]:
        """Yield all functions and methods."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef):
                yield node


def sources() -> list[Source]:
    paths = sorted((ROOT / "hftune").rglob("*.py"))
    return [Source(path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


def decoded_summaries(files: list[Source]) -> list[str]:
    """Name the summaries with "what" or "which" where a noun would do."""
    found = []
    for file in files:
        for name, line, text in file.documented():
            words = text.split("\n\n")[0].lower().replace(",", " ").replace(":", " ").split()
            if {"what", "which"} & {*words}:
                found.append(f"{file.place}:{line}: {name}")
    return found


def loose_types(files: list[Source]) -> list[str]:
    """Name the uses of ``Any`` in annotations and calls, imports left out."""
    return [
        f"{file.place}:{node.lineno}"
        for file in files
        for node in ast.walk(file.tree)
        if isinstance(node, ast.Name) and node.id == "Any"
    ]


def without_example(files: list[Source]) -> list[str]:
    """Name the public top-level functions and classes without an example that runs."""
    return [
        f"{file.place}:{node.lineno}: {node.name}"
        for file in files
        for node in file.public()
        if ">>>" not in (ast.get_docstring(node) or "")
    ]


def functions_over(lines: int) -> Callable[[list[Source]], list[str]]:
    """Return a function that names the functions of more lines."""

    def found(files: list[Source]) -> list[str]:
        return [
            f"{file.place}:{node.lineno}: {node.name}, {length} lines"
            for file in files
            for node in file.functions()
            if (length := (node.end_lineno or 0) - node.lineno + 1) > lines
        ]

    return found


def repeated_base_names(files: list[Source]) -> list[str]:
    """Name the base names of files that stand in several packages."""
    names = Counter(file.path.stem for file in files)
    return [name for name, times in names.items() if times > 1 and name not in SHARED_BASE_NAMES]


def repeated_definitions(files: list[Source]) -> list[str]:
    """Name the public top-level functions and classes that several files define.

    A verb is a function of the command line and one of ``commands/``, which it calls.
    """
    names = Counter(
        node.name
        for file in files
        for node in file.tree.body
        if isinstance(node, Definition)
        and not node.name.startswith("_")
        and "/cli/" not in file.place
    )
    return [name for name, times in names.items() if times > 1]


def crowded_packages(files: list[Source]) -> list[str]:
    """Name the packages with too many files."""
    sizes = Counter(file.path.parent.relative_to(ROOT).as_posix() for file in files)
    return [f"{folder}: {size} files" for folder, size in sizes.items() if size > MAX_FILES + 1]


#: Function -> the largest number that it may find. Lower it with each change that allows it.
FIGURES: dict[str, tuple[Callable[[list[Source]], list[str]], int]] = {
    "summaries with what or which": (decoded_summaries, 66),
    "uses of Any": (loose_types, 844),
    "public definitions without an example": (without_example, 649),
    f"functions over {VERY_LONG} lines": (functions_over(VERY_LONG), 0),
    f"functions over {LONG} lines": (functions_over(LONG), 14),
    "base names that stand twice": (repeated_base_names, 1),
    "public names defined twice": (repeated_definitions, 14),
    "crowded packages": (crowded_packages, 0),
}


@pytest.fixture(scope="module")
def all_sources() -> list[Source]:
    return sources()


@pytest.mark.parametrize("figure", FIGURES)
def test_figure_does_not_rise(figure: str, all_sources: list[Source]) -> None:
    find, most = FIGURES[figure]
    found = find(all_sources)
    assert len(found) <= most, f"{len(found)} {figure}, {most} at most:\n" + "\n".join(found)


def test_prepare_and_verbs_are_tables_of_contents(all_sources: list[Source]) -> None:
    """The way of a recipe is read in them, one call a line."""
    short = "hftune/commands/", "hftune/training/plan/prepare.py", "hftune/training/run_training.py"
    files = [file for file in all_sources if file.place.startswith(short)]
    assert len(files) > 10
    assert functions_over(LONG)(files) == []


if __name__ == "__main__":
    wanted = sys.argv[1:] or FIGURES
    for figure, (find, most) in FIGURES.items():
        if figure in wanted:
            found = find(sources())
            print(f"{figure}: {len(found)} (at most {most})")
            if sys.argv[1:]:
                print("\n".join(found))
    lines = sum(len(file.path.read_text("utf-8").splitlines()) for file in sources())
    print(f"files: {len(sources())}, lines: {lines}")
