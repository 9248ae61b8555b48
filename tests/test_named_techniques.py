# SPDX-License-Identifier: Apache-2.0
"""A technique is named in its registry row and its own files; everything else asks the row.

A list of names, a comparison with a name and a test for a technique's class all repeat a fact that
belongs to the row or the class, and copies of facts drift apart. The names come from the tables.

A word with several meanings in a recipe is not followed: ``linear`` is a schedule and a pacing,
``loss`` is a section, a metric and a difficulty. The recipe's own schema tells these words.
"""

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from hftune.core.registry import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from hftune.data.sampling import DIFFICULTIES, PACINGS, SAMPLINGS
from hftune.initialization import SCHEMES
from hftune.losses import LOSSES
from hftune.methods import ROWS
from hftune.optimization.optimizers import OPTIMIZERS
from hftune.optimization.schedules import SCHEDULES
from hftune.recipe.json_schema import recipe_schema
from hftune.regularization.section import RegularizationSection
from hftune.tasks import TASKS

ROOT = Path(__file__).parent.parent
#: Kind of technique -> its names, each with its row where it has one.
TABLES: dict[str, Mapping[str, Any]] = {
    "task": TASKS,
    "problem type": dict.fromkeys((SINGLE_LABEL, MULTI_LABEL, REGRESSION)),
    "method": ROWS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "scheme": SCHEMES,
    "sampling": SAMPLINGS,
    "difficulty": DIFFICULTIES,
    "pacing": PACINGS,
    "regularization": dict.fromkeys(field.name for field in fields(RegularizationSection)),
}
#: Where a kind of technique is named freely: its tables and its section.
TABLE_FILES = (
    "core/registry.py", "tasks/__init__.py", "tasks/problem_types/", "methods/__init__.py",
    "methods/peft_types.py", "methods/tuners.py", "losses/__init__.py",
    "optimization/optimizers.py",
    "optimization/schedules.py", "initialization/__init__.py", "data/__init__.py",
    "data/sampling/__init__.py", "regularization/__init__.py", "regularization/section.py",
    "evaluation/__init__.py",
)  # fmt: skip
#: Files that hold other libraries' own words -> what these are.
OTHER_LIBRARIES = {
    "core/suggest.py": "names that other tools give to a key",
    "recipe/training_fields.py": "fields of TrainingArguments",
    "recipe/training_rules.py": "switches of liger-kernel",
}
#: Words of other libraries that are also names of techniques -> what they mean there.
OTHER_WORDS = {
    "mae": "a metric, and a loss",
    "mse": "a metric, and a loss",
    "step": "a key of the Trainer's log",
    "weighted": "scikit-learn's average of classes",
}


@dataclass(frozen=True)
class Place:
    """A line that names techniques."""

    path: str
    line: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {', '.join(self.names)}"


def words_of(schema: Any) -> Iterator[tuple[str, ...]]:
    """Yield every key of a JSON Schema, and every group of words that one value may be."""
    if isinstance(schema, dict):
        yield from ((key,) for key in schema.get("properties", {}))
        yield tuple(word for word in schema.get("enum", ()) if isinstance(word, str))
        for value in schema.values():
            yield from words_of(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from words_of(value)


@cache
def followed() -> dict[str, str]:
    """Return name -> kind of the names that have one meaning in a recipe."""
    kinds = Counter(name for table in TABLES.values() for name in table)
    regularizations = TABLES["regularization"].keys()
    other_meanings = {
        word
        for group in set(words_of(recipe_schema()))
        for word in group
        if not any(table.keys() >= {*group} for table in TABLES.values())
        or (len(group) == 1 and word not in regularizations)
    }
    return {
        name: kind
        for kind, table in TABLES.items()
        for name in table
        if kinds[name] == 1 and (name not in {*other_meanings, *OTHER_WORDS} or "-" in name)
    }


def own_places(name: str) -> set[str]:
    """Return the files or folders below hftune/ that belong to a technique."""
    row = TABLES[followed()[name]].get(name)
    places = set()
    for target in (getattr(row, "target", None), getattr(row, "options", None)):
        if isinstance(target, str) and target.startswith("hftune."):
            inside = target.partition(":")[0].split(".")[1:]
            places.add("/".join(inside[:2]) + ("/" if len(inside) > 2 else ""))
            places.add("/".join(inside[:2]) + ".py")
            places.add("/".join(inside[:2]) + "/")
    return places


def may_name(path: str, name: str) -> bool:
    """Tell whether a file below hftune/ may name a technique."""
    free = (*TABLE_FILES, *OTHER_LIBRARIES, *own_places(name))
    return any(path == place or (place.endswith("/") and path.startswith(place)) for place in free)


def strings(nodes: list[ast.expr | None]) -> list[str]:
    values = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return [value for value in values if isinstance(value, str)]


def in_literal_types(tree: ast.AST) -> set[int]:
    """Return the nodes that lie inside ``Literal[...]``."""
    return {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", None) == "Literal"
        for inner in ast.walk(node)
    }


def named_in(node: ast.AST) -> tuple[str, list[str]]:
    """Return whether a node is a list or a comparison, and the strings in it."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return "list", strings(list(node.elts))
    if isinstance(node, ast.Dict):
        return "list", strings(list(node.keys))
    if isinstance(node, ast.Compare):
        return "comparison", strings([node.left, *node.comparators])
    form = getattr(node.func, "attr", None) if isinstance(node, ast.Call) else None
    if isinstance(node, ast.Call) and form in ("startswith", "endswith"):
        parts = [part for part in strings(list(node.args)) if len(part) > 3]
        test = getattr(str, form)
        return "comparison", [name for name in followed() for part in parts if test(name, part)]
    return "", []


def naming(root: Path, kind: str) -> list[Place]:
    """Return every list of names, or every comparison with a name, outside its place.

    Args:
        root: The folder that holds hftune/.
        kind: ``list`` or ``comparison``.
    """
    found = []
    for path in sorted((root / "hftune").rglob("*.py")):
        inside = path.relative_to(root / "hftune").as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        types = in_literal_types(tree)
        for node in ast.walk(tree):
            if id(node) in types:
                continue
            form, given = named_in(node)
            names = [name for name in given if name in followed() and not may_name(inside, name)]
            if names and form == kind:
                found.append(Place(f"hftune/{inside}", node.lineno, tuple(names)))
    return found


def classes() -> dict[str, set[str]]:
    """Return class -> its own files, for classes that are the target of a row."""
    found: dict[str, set[str]] = {}
    for table in TABLES.values():
        for row in table.values():
            target = getattr(row, "target", None)
            if isinstance(target, str) and target.startswith("hftune."):
                module, _, name = target.partition(":")
                inside = module.split(".")[1:]
                found.setdefault(name, set()).update(
                    {
                        "/".join(inside) + ".py",
                        "/".join(inside[:-1] if inside[2:] else inside) + "/",
                    }
                )
    return found


def class_tests(root: Path) -> list[Place]:
    """Return every ``isinstance`` that asks for the class of a technique outside its place."""
    found, known = [], classes()
    for path in sorted((root / "hftune").rglob("*.py")):
        inside = path.relative_to(root / "hftune").as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "isinstance":
                asked = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
                names = tuple(
                    name
                    for name in sorted(asked & known.keys())
                    if not any(
                        inside == place or (place.endswith("/") and inside.startswith(place))
                        for place in known[name]
                    )
                )
                if names:
                    found.append(Place(f"hftune/{inside}", node.lineno, names))
    return found


def test_techniques_are_not_listed_by_name() -> None:
    found = naming(ROOT, "list")
    assert len(found) <= LISTS, "\n".join(map(str, found))


def test_nothing_is_compared_with_the_name_of_a_technique() -> None:
    found = naming(ROOT, "comparison")
    assert len(found) <= COMPARISONS, "\n".join(map(str, found))


def test_nothing_asks_for_the_class_of_a_technique() -> None:
    found = class_tests(ROOT)
    assert len(found) <= CLASS_TESTS, "\n".join(map(str, found))


#: Numbers that must stay.
LISTS = 0
COMPARISONS = 0
CLASS_TESTS = 0


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("list", 'SLOW = ("diff_pruning", "relora")'),
        ("list", 'RATES = {"head_only": 1e-3}'),
        ("list", 'TASKS = {"text-generation"}'),
        ("comparison", 'if method == "qlora": pass'),
        ("comparison", 'if name not in ("a", "b") and name != "schedule_free_adamw": pass'),
        ("comparison", 'if name.startswith("schedule_free"): pass'),
        ("comparison", 'if "multi_label_classification" == kind: pass'),
    ],
)
def test_a_name_is_found(tmp_path: Path, kind: str, code: str) -> None:
    (tmp_path / "hftune/report").mkdir(parents=True)
    (tmp_path / "hftune/report/page.py").write_text(code)
    assert [place.path for place in naming(tmp_path, kind)] == ["hftune/report/page.py"]


def test_a_class_is_found(tmp_path: Path) -> None:
    for path in ("report/page.py", "losses/focal.py"):
        (tmp_path / "hftune" / path).parent.mkdir(parents=True)
        (tmp_path / "hftune" / path).write_text("isinstance(loss, (Focal, dict))")
    assert [place.path for place in class_tests(tmp_path)] == ["hftune/report/page.py"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("methods/relora.py", 'NAMES = ("relora",)'),
        ("methods/__init__.py", 'METHODS = {"relora": 1, "qlora": 2}'),
        ("report/page.py", 'Kind = Literal["relora", "qlora"]'),
        ("report/page.py", 'COLUMNS = ("loss", "step")'),
    ],
)
def test_a_name_in_its_place_is_free(tmp_path: Path, path: str, code: str) -> None:
    file = tmp_path / "hftune" / path
    file.parent.mkdir(parents=True)
    file.write_text(code)
    assert naming(tmp_path, "list") == []
