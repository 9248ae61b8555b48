# SPDX-License-Identifier: Apache-2.0
import ast
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from hftune.data import docstrings
from hftune.data.docstrings import PACKAGES, ROWS_PER_PACKAGE, collect_rows, docstring_rows

SOURCE = '''
"""A module's own docstring is no row."""
import not_installed_anywhere

def solve(matrix, vector, *, tolerance=1e-6):
    """Solve a linear system of equations
    by elimination.

    More about it.
    """

def short():
    """Too short a summary."""

def _private():
    """Never shown, since the name is private."""

def undocumented():
    pass

class Solver(Base, metaclass=Meta):
    """Solves many systems with the same matrix."""

    def __init__(self):
        """Never shown, since the name is private."""

    def solve(self, vector):
        """SOLVE a linear system of equations by elimination."""

    def refine(self, steps: int = 3) -> "Solver":
        """Improve the last solution by iterative refinement."""
        for step in range(steps):
            if not step:
                return
        return self
'''


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HFTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "docstrings"


@pytest.fixture
def tiny_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "site" / "tinypackage_for_docstrings"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('parsed, never imported')")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(docstrings, "PACKAGES", {"tiny-package": package.name})
    return package


def test_rows_of_a_tiny_package(tiny_package: Path) -> None:
    (tiny_package / "linear.py").write_text(SOURCE)
    (tiny_package / "_hidden.py").write_text(SOURCE)
    (tiny_package / "tests").mkdir()
    (tiny_package / "tests" / "test_linear.py").write_text(SOURCE)
    place = "tinypackage_for_docstrings.linear"
    expected = [
        {
            "module": place,
            "name": f"{place}.solve",
            "signature": "def solve(matrix, vector, *, tolerance=1e-06)",
            "summary": "Solve a linear system of equations by elimination.",
            "kind": "function",
            "log2_statements": 0.0,
            "package": "tiny-package",
            "topics": ["tiny-package", "function"],
        },
        {
            "module": place,
            "name": f"{place}.Solver",
            "signature": "class Solver(Base)",
            "summary": "Solves many systems with the same matrix.",
            "kind": "class",
            "log2_statements": 3.0,  # three methods, a loop, a branch, two returns: 7
            "package": "tiny-package",
            "topics": ["tiny-package", "class"],
        },
        {
            "module": place,
            "name": f"{place}.Solver.refine",
            "signature": "def refine(self, steps: int=3)",
            "summary": "Improve the last solution by iterative refinement.",
            "kind": "method",
            "log2_statements": 2.3219,  # 4
            "package": "tiny-package",
            "topics": ["tiny-package", "method"],
        },
    ]
    assert collect_rows() == expected


@pytest.mark.parametrize(
    ("code", "statements"),
    [
        ("'text only'", 0),
        ("pass", 1),
        ("return 1 if a else 2", 1),
        ("while a:\n  raise a", 2),
        ("def inner():\n  'text'\n  return 1\ninner()", 3),
    ],
)
def test_statements_are_counted_without_texts(code: str, statements: int) -> None:
    (node,) = ast.parse(f"def f(a):\n{textwrap.indent(code, '  ')}").body
    assert isinstance(node, ast.FunctionDef)
    logarithm = docstrings.log2_statements(node)
    assert 2**logarithm - 1 == pytest.approx(statements, abs=1e-3)


def test_a_package_gives_no_more_rows_than_the_cap(tiny_package: Path) -> None:
    (tiny_package / "many.py").write_text(
        "\n".join(
            f'def f{i}():\n    """Function number {i} of very many alike."""'
            for i in range(ROWS_PER_PACKAGE + 10)
        )
    )
    assert len(collect_rows()) == ROWS_PER_PACKAGE


def test_real_rows_come_soon_as_in_another_process_and_then_from_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process imports none of the packages."""
    packages = set(PACKAGES.values())
    script = (
        "import json, sys\n"
        "from hftune.data.docstrings import docstring_rows\n"
        "rows = docstring_rows()\n"
        f"print(json.dumps([rows, sorted({packages!r} & set(sys.modules))]))\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HFTUNE_CACHE": str(cache.parent / "other"), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    theirs, imported = json.loads(child.stdout)
    assert imported == []
    start = time.process_time()
    ours = docstring_rows()
    assert time.process_time() - start < 15
    assert ours == theirs
    assert {row["package"] for row in ours} == set(PACKAGES)
    summaries = [row["summary"].casefold() for row in ours]
    assert len(set(summaries)) == len(summaries) > 2000
    (cached,) = cache.iterdir()
    monkeypatch.delattr(docstrings, "collect_rows")
    assert docstring_rows() == ours
    (cached / "rows.jsonl").write_text(json.dumps(ours[0]) + "\n")
    with pytest.raises(NameError, match="collect_rows"):
        docstring_rows()  # damaged
