# SPDX-License-Identifier: Apache-2.0
"""Draw the packages of hftune from their imports: ``python docs/development/draw_packages.py``.

A package stands one row above the highest package that it imports. An arrow points at each package
of the row below that is imported; arrows over several rows are left out, so that the picture stays
readable. The imports lie in the SVG as text, and a test compares them with the source.
"""

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs/images/packages.svg"
PACKAGE = "hftune"
#: Modules that stand above all packages.
ENTRANCE = ("__init__", "__main__")


def package_imports(root: Path = ROOT) -> dict[str, list[str]]:
    """Return package -> the packages that it imports, wherever in a file an import stands."""
    imports: dict[str, set[str]] = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        name = path.relative_to(root / PACKAGE).with_suffix("").parts[0]
        if name in ENTRANCE:
            continue
        others = imports.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
                others.add(str(node.module).split(".")[1])
    return {name: sorted(others - {name}) for name, others in sorted(imports.items())}


def rows_of(imports: Mapping[str, list[str]]) -> dict[str, int]:
    """Return package -> row, counted from the ground.

    Raises:
        ValueError: Packages import each other in a circle.
    """
    rows: dict[str, int] = {}
    while len(rows) < len(imports):
        ready = {
            name: 1 + max((rows[other] for other in others), default=-1)
            for name, others in imports.items()
            if name not in rows and all(other in rows for other in others)
        }
        if not ready:
            raise ValueError(f"a circle of imports among {sorted(imports.keys() - rows.keys())}")
        rows |= ready
    return rows


def drawn_imports(picture: Path = PICTURE) -> dict[str, list[str]]:
    """Return the imports that the picture was drawn from."""
    text = re.search(r"<dc:description>(.*?)</dc:description>", picture.read_text("utf-8"), re.S)
    assert text is not None, f"{picture} holds no description"
    imports: dict[str, list[str]] = json.loads(text.group(1).replace("&quot;", '"'))
    return imports


def num_files(name: str) -> int:
    """Return the number of modules of a package."""
    return sum(path.name != "__init__.py" for path in (ROOT / PACKAGE / name).rglob("*.py"))


def number_of(number: int, one: str, several: str) -> str:
    """Return a number with its word."""
    return f"{number} {one if number == 1 else several}"


def draw(imports: Mapping[str, list[str]], picture: Path = PICTURE) -> None:
    """Draw the packages as boxes in rows, with arrows to imported packages of the row below."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = PACKAGE
    import matplotlib.pyplot as plt

    rows = rows_of(imports)
    layers = [[name for name in rows if rows[name] == row] for row in range(max(rows.values()) + 1)]
    places = {
        name: ((index + 1) / (len(layer) + 1), row)
        for row, layer in enumerate(layers)
        for index, name in enumerate(layer)
    }
    figure, axes = plt.subplots(figsize=(9, 0.95 * len(layers) + 0.5))
    for name, others in imports.items():
        for other in others:
            if rows[other] == rows[name] - 1:
                axes.annotate(
                    "", places[other], places[name],
                    arrowprops={"arrowstyle": "->", "color": "#7b8794", "shrinkA": 30,
                                "shrinkB": 30},
                )  # fmt: skip
    for name, (x, y) in places.items():
        label = f"{name}\n{number_of(num_files(name), 'file', 'files')}"
        axes.text(
            x, y, label, ha="center", va="center", fontsize=9,
            bbox={"boxstyle": "round,pad=0.45", "facecolor": "#eef3fb", "edgecolor": "#3b5b92"},
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(-0.6, len(layers) - 0.4))
    axes.axis("off")
    figure.tight_layout()
    description = json.dumps(imports, sort_keys=True)
    figure.savefig(picture, metadata={"Date": None, "Description": description})
    plt.close(figure)


if __name__ == "__main__":
    draw(package_imports())
    print(f"{PICTURE.relative_to(ROOT)} is drawn")
