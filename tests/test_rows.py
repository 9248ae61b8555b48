# SPDX-License-Identifier: Apache-2.0
"""Rows of the tables: their places exist, their facts are read, their names are tested and told."""

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hftune.core import optimization_rows, registry, sampling_rows, task_rows
from hftune.core.registry import named
from hftune.data.sampling import DIFFICULTIES, PACINGS, SAMPLINGS
from hftune.initialization import SCHEMES
from hftune.losses import LOSSES
from hftune.methods import ROWS
from hftune.optimization.optimizers import OPTIMIZERS
from hftune.optimization.schedules import SCHEDULES
from hftune.regularization import AVERAGES, REGULARIZATIONS
from hftune.tasks import TASKS

ROOT = Path(__file__).parent.parent
TABLES: dict[str, Mapping[Any, Any]] = {
    "TASKS": TASKS,
    "ROWS": ROWS,
    "LOSSES": LOSSES,
    "OPTIMIZERS": OPTIMIZERS,
    "SCHEDULES": SCHEDULES,
    "SCHEMES": SCHEMES,
    "REGULARIZATIONS": REGULARIZATIONS,
    "AVERAGES": AVERAGES,
    "SAMPLINGS": SAMPLINGS,
    "DIFFICULTIES": DIFFICULTIES,
    "PACINGS": PACINGS,
}
#: Table -> the test that all its names share, and its docs page.
SHARED = {
    "OPTIMIZERS": ("optimization/test_make_optimizer.py", "optimizers.md"),
    "SCHEDULES": ("optimization/test_make_schedule.py", "schedules.md"),
    "SCHEMES": ("initialization/test_schemes.py", "initialization.md"),
    "REGULARIZATIONS": ("regularization/test_regularizers.py", "regularization.md"),
    "AVERAGES": ("regularization/test_weight_averaging.py", "weight_averaging.md"),
    "SAMPLINGS": ("data/sampling/test_row_sampler.py", "sampling.md"),
    "DIFFICULTIES": ("data/sampling/test_curriculum.py", "sampling.md"),
    "PACINGS": ("data/sampling/test_curriculum.py", "sampling.md"),
}
PLACE = re.compile(r"(peft|[a-z]\w*(\.\w+)+):\w+")
ROW_CLASSES = [
    kind
    for module in (registry, task_rows, optimization_rows, sampling_rows)
    for kind in vars(module).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__name__.endswith("Row")
]


def places(value: Any) -> Iterator[str]:
    """Yield every ``package.module:name`` of a row."""
    if isinstance(value, str) and PLACE.fullmatch(value):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from places(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from places(inner)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from places(getattr(value, field.name))


def read_attributes(folder: Path) -> set[str]:
    return {
        node.attr
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def untested(text: str, table: str, names: Mapping[Any, Any]) -> list[str]:
    """Return the names without a case: the test neither runs over the table nor says them."""
    tree = ast.parse(text)
    decorators = [
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in function.decorator_list
    ]
    over = {node.id for one in decorators for node in ast.walk(one) if isinstance(node, ast.Name)}
    if table in over:
        return []
    said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return [name for name in names if name not in said]


@pytest.mark.parametrize("table", TABLES)
def test_every_place_of_a_row_exists(table: str) -> None:
    for name, row in TABLES[table].items():
        for place in places(row):
            assert named(place) is not None, (name, place)


def test_every_field_of_a_row_is_read() -> None:
    """A fact that no code asks for is no fact."""
    read = read_attributes(ROOT / "hftune")
    unread = [
        f"{kind.__name__}.{field.name}"
        for kind in ROW_CLASSES
        for field in dataclasses.fields(kind)
        if field.name not in read
    ]
    assert len(ROW_CLASSES) > 10
    assert unread == []


@pytest.mark.parametrize("table", SHARED)
def test_every_name_has_a_case_and_stands_on_its_page(table: str) -> None:
    test, page = SHARED[table]
    names = TABLES[table]
    assert untested((ROOT / "tests" / test).read_text(encoding="utf-8"), table, names) == []
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_page_of_optimizers_has_the_summaries_of_the_rows() -> None:
    text = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")
    for name, row in OPTIMIZERS.items():
        if row.target is None:
            assert f"| `{name}` | {row.summary} | {row.package or 'none'} |" in text


def test_faults_are_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("a.read\nb.written = 1\n", encoding="utf-8")
    assert read_attributes(tmp_path) == {"read"}
    row = optimization_rows.OptimizerRow(summary="a: b", first_part="no.such.module:name")
    assert list(places(row)) == ["no.such.module:name"]
    names = {"one": 1, "two": 2}
    assert untested("def test():\n    f('one')", "NAMES", names) == ["two"]
    assert untested("@mark('name', NAMES)\ndef test(): ...", "NAMES", names) == []
