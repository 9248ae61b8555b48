# SPDX-License-Identifier: Apache-2.0
"""The shape of the house: imports go downward, and each technique has its file, test and page."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hftune.core.registry import Row
from hftune.losses import LOSSES
from hftune.methods import PEFT, ROWS
from hftune.tasks import TASKS

ROOT = Path(__file__).parent.parent
TABLES: dict[str, Mapping[str, Any]] = {
    "losses": LOSSES,
    "methods": {**ROWS, "peft": PEFT},
    "tasks": TASKS,
}

#: Packages from the ground up. A package imports those in lines above its own; packages in one line
#: never import each other.
ORDER = """
core
models
data
evaluation speed
report
losses
tasks
methods
optimization initialization
regularization
distillation
recipe
runs hub
training interpret
commands
cli __init__ __main__
"""
STOREYS = {name: storey for storey, line in enumerate(ORDER.split("\n")) for name in line.split()}
ENTRANCE = STOREYS["cli"]  # One family: __main__ starts cli, __init__ offers the verbs.
VAGUE_NAMES = {"utils", "helpers", "common", "misc"}
MAX_LINES = 400
SPDX = "# SPDX-License-Identifier: Apache-2.0"


def python_files(root: Path, *folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def imported_tops(tree: ast.Module, package: list[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, top folder or module) of every import of hftune, wherever it stands.

    Args:
        tree: The parsed file.
        package: Names of the packages around the file, for relative imports.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            around = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*around, *([node.module] if node.module else [])])
            modules = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            parts = module.split(".")
            if parts[0] == "hftune":
                # In `from hftune import x`, x may be a module or a name of hftune/__init__.py.
                a_name = isinstance(node, ast.ImportFrom) and len(parts) == 2
                is_top = len(parts) > 1 and (parts[1] in STOREYS or not a_name)
                yield node.lineno, parts[1] if is_top else "__init__"


def wrong_imports(root: Path) -> list[str]:
    wrong = []
    for path in python_files(root, "hftune"):
        inside = path.relative_to(root / "hftune").with_suffix("")
        top, place = inside.parts[0], path.relative_to(root).as_posix()
        if top not in STOREYS:
            wrong.append(f"{place}: {top} has no storey")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, other in imported_tops(tree, ["hftune", *inside.parts[:-1]]):
            if other not in STOREYS:
                wrong.append(f"{place}:{line}: {other} has no storey")
            elif not may_import(top, other):
                wrong.append(
                    f"{place}:{line}: {top} (storey {STOREYS[top]}) imports "
                    f"{other} (storey {STOREYS[other]})"
                )
    return wrong


def may_import(top: str, other: str) -> bool:
    mine, theirs = STOREYS[top], STOREYS[other]
    return theirs < mine or top == other or mine == theirs == ENTRANCE


def missing_companions(root: Path, family: str, table: Mapping[str, Any]) -> list[str]:
    """Name the module, test and page that the rows of ``table`` lack.

    Rows whose target lies outside hftune have logic elsewhere, and names may share a module.
    """
    places = {getattr(row, "options", None) or row.target for row in table.values()}
    modules = {tuple(place.partition(":")[0].split(".")) for place in places}
    missing = []
    for top, *inside in sorted(modules):
        if top != "hftune":
            continue
        if inside[0] != family or len(inside) < 2:
            missing.append(f"a target of {family} below hftune/{family}/, not {'.'.join(inside)}")
            continue
        name = inside[1]
        module = root / "hftune" / family / f"{name}.py"
        if not module.is_file() and not (module.with_suffix("") / "__init__.py").is_file():
            missing.append(f"hftune/{family}/{name}.py")
        missing += [
            companion
            for companion in (f"tests/{family}/test_{name}.py", f"docs/{family}/{name}.md")
            if not (root / companion).is_file()
        ]
    return missing


def vague_names(root: Path) -> list[str]:
    return [
        path.relative_to(root).as_posix()
        for path in python_files(root, "hftune")
        if VAGUE_NAMES & set(path.relative_to(root).with_suffix("").parts)
    ]


def long_files(root: Path) -> list[str]:
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(root, "hftune")
    }
    return [
        f"{path.relative_to(root).as_posix()}: {length} lines"
        for path, length in lengths.items()
        if length > MAX_LINES
    ]


def without_licence(root: Path) -> list[str]:
    return [
        path.relative_to(root).as_posix()
        for path in python_files(root, "hftune", "recipes", "tests", "benchmarks")
        if (text := path.read_text(encoding="utf-8")) and text.splitlines()[0] != SPDX
    ]


def attribute_probes(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root).as_posix()}:{node.lineno}"
        for path in python_files(root, "hftune")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and node.id == "hasattr"
    ]


def cache_folders(root: Path) -> list[str]:
    """Name the files that look into the folders of the cache by themselves."""
    return [
        path.relative_to(root).as_posix()
        for path in python_files(root, "hftune")
        if {"cache_folder", "cache_root"}
        & {
            getattr(node, "attr", getattr(node, "id", ""))
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
        }
    ]


def readers(root: Path) -> list[str]:
    """Name the files that find a task's columns or select its rows.

    ``Dataset.select`` takes one argument, ``Task.select`` two. A task may ask its base class.
    """
    found = []
    for path in python_files(root, "hftune"):
        calls = [
            node.func
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and (node.func.attr == "columns" or (node.func.attr == "select" and len(node.args) > 1))
        ]
        if any(not ast.unparse(call.value).startswith("super()") for call in calls):
            found.append(path.relative_to(root).as_posix())
    return found


def test_imports_go_downward() -> None:
    assert wrong_imports(ROOT) == []


@pytest.mark.parametrize("family", TABLES)
def test_every_row_has_module_test_and_page(family: str) -> None:
    assert missing_companions(ROOT, family, TABLES[family]) == []


def test_one_cache() -> None:
    """Free room is asked for by arrays, and shown by doctor; all else goes through the module."""
    known = ["hftune/commands/doctor.py", "hftune/core/cache.py", "hftune/core/cached_arrays.py"]
    assert cache_folders(ROOT) == known


def test_one_reader_of_rows() -> None:
    assert readers(ROOT) == ["hftune/tasks/reader.py"]


@pytest.mark.parametrize("check", [vague_names, long_files, without_licence, attribute_probes])
def test_source_files(check: Any) -> None:
    assert check(ROOT) == []


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("core/files.py", "from hftune.data import load"),
        ("data/load.py", "from hftune.evaluation.classification import scores"),
        ("data/load.py", "import hftune.tasks.fill_mask"),
        ("data/load.py", "from hftune import tasks"),
        ("data/load.py", "from hftune import train"),
        ("data/augment/noise.py", "from ...methods import METHODS"),
        ("data/augment/noise.py", "from ... import methods"),
        ("recipe/load.py", "def late():\n    from hftune.training.build import build"),
        (
            "losses/focal.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hftune.methods",
        ),
        ("data/load.py", "import hftune.attic"),
        ("attic/old.py", "import torch"),
    ],
)
def test_import_upward_or_across_is_found(tmp_path: Path, path: str, text: str) -> None:
    write(tmp_path, f"hftune/{path}", text)
    assert [found.split(":")[0] for found in wrong_imports(tmp_path)] == [f"hftune/{path}"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("data/load.py", "from hftune.core.files import sha256_of\nfrom hftune.data import split"),
        ("data/augment/noise.py", "from ..load import rows\nfrom . import words"),
        ("commands/train.py", "from hftune.training.build import build"),
        ("__main__.py", "from hftune.cli import main"),
        ("__init__.py", "from .recipe.recipe import Recipe"),
    ],
)
def test_import_downward_is_allowed(tmp_path: Path, path: str, text: str) -> None:
    write(tmp_path, f"hftune/{path}", text)
    assert wrong_imports(tmp_path) == []


def test_missing_companion_is_found(tmp_path: Path) -> None:
    table = {
        "one": Row(target="hftune.methods.shared:One", summary=""),
        "two": Row(target="hftune.methods.shared:Two", summary=""),
        "deep": Row(target="hftune.methods.deep.layer:Deep", summary=""),
        "theirs": Row(target="torch.optim:NAdam", summary=""),
    }
    whole = [
        "hftune/methods/shared.py",
        "tests/methods/test_shared.py",
        "docs/methods/shared.md",
        "hftune/methods/deep/__init__.py",
        "tests/methods/test_deep.py",
        "docs/methods/deep.md",
    ]
    for path in whole:
        write(tmp_path, path, "")
    assert missing_companions(tmp_path, "methods", table) == []
    for path in whole[:3]:
        (tmp_path / path).unlink()
        assert missing_companions(tmp_path, "methods", table) == [path]
        write(tmp_path, path, "")
    stray = {"stray": Row(target="hftune.losses.focal:Focal", summary="")}
    assert len(missing_companions(tmp_path, "methods", stray)) == 1


@pytest.mark.parametrize(
    ("check", "path", "text"),
    [
        (vague_names, "hftune/data/utils.py", ""),
        (vague_names, "hftune/common/text.py", ""),
        (long_files, "hftune/data/load_rows.py", "\n" * 401),
        (without_licence, "recipes/custom/own_loss.py", '"""A recipe."""'),
        (attribute_probes, "hftune/data/load_rows.py", "hasattr(x, 'y')"),
        (readers, "hftune/runs/predict.py", "run.task.columns(names, {})"),
        (readers, "hftune/runs/predict.py", "rows = task.select(rows, columns)"),
        (
            cache_folders,
            "hftune/data/arrow.py",
            "cache.cache_root()",
        ),
    ],
)
def test_fault_in_a_source_file_is_found(tmp_path: Path, check: Any, path: str, text: str) -> None:
    write(tmp_path, path, text)
    assert [found.split(":")[0] for found in check(tmp_path)] == [path]
