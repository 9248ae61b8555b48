# SPDX-License-Identifier: Apache-2.0
"""Read recipe files, YAML 1.2 with line numbers, and apply overrides of the command line."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from hftune.core.errors import HftuneError, RecipeError, first_line
from hftune.recipe.sections import DEFAULT_NAMES, SHORT_FORMS

KeyPath = tuple[str | int, ...]

#: Suffixes of data files that a beginner may pass instead of a recipe.
ROWS = (".csv", ".tsv", ".jsonl", ".txt", ".parquet", ".conll", ".bio", ".iob")


@dataclass
class Source:
    """The values of a recipe, and the place of each key.

    Attributes:
        tree: The recipe as dicts, lists and scalars.
        places: Key path -> ``file:line`` or ``command line``.
        name: The file's name, for keys without a line of their own.

    Example:
        >>> source = Source({"data": {"path": "a.csv"}}, "mine.yaml", {("data",): "mine.yaml:3"})
        >>> source.place(("data", "path")), source.place(("model",))
        ('mine.yaml:3', 'mine.yaml')
    """

    tree: dict[str, Any]
    name: str = "recipe"
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Return the place of a key, or of the nearest key above it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.name)


def load_source(path: Path, overrides: Iterable[str] = ()) -> Source:
    r"""Read a recipe file, and apply overrides of the form ``key.of.section=value``.

    Raises:
        HftuneError: The file is missing, unreadable or no mapping.
        RecipeError: The YAML is broken or repeats a key, or an override is malformed.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        ...     _ = file.write("task: text-generation\nmodel: gpt2\n")
        ...     file.flush()
        ...     load_source(Path(file.name), ["method.r=16"]).tree["method"]
        {'name': 'lora', 'r': 16}
    """
    if path.suffix in ROWS and path.is_file():
        raise HftuneError(
            f"{path}: rows, not a recipe", hint=f"hftune init {path} writes a recipe for them"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise HftuneError(f"{path}: no such recipe", hint=_recipes_nearby(path)) from None
    except IsADirectoryError:
        raise HftuneError(
            f"{path}: a folder, not a recipe", hint=f"try {path / 'recipe.yaml'}"
        ) from None
    except UnicodeDecodeError as error:
        raise HftuneError(f"{path}: not UTF-8 at byte {error.start}") from None
    node = _parse(text, str(path))
    if not isinstance(node, dict):
        raise HftuneError(
            f"{path}: a recipe is a mapping with the keys task, model and data; "
            f"this file holds {'nothing' if node is None else type(node).__name__}"
        )
    source = Source(tree={}, name=str(path))
    source.tree = _plain(node, (), source)
    for override in overrides:
        _override(source, override)
    return source


def _parse(text: str, name: str) -> object:
    try:
        node: object = YAML(typ="rt").load(text)
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1
        raise RecipeError([f"{name}:{line}: {error.problem.split(' with value')[0]}"]) from None
    except MarkedYAMLError as error:
        line = (error.problem_mark or error.context_mark).line + 1
        raise RecipeError([f"{name}:{line}: broken YAML: {error.problem}"]) from None
    except YAMLError as error:
        raise RecipeError([f"{name}: broken YAML: {first_line(error)}"]) from None
    return node


def _plain(node: object, path: KeyPath, source: Source) -> Any:
    """Turn ruamel's annotated nodes into plain values and note their lines."""
    if isinstance(node, CommentedMap):
        for key in node:
            source.places[(*path, key)] = f"{source.name}:{node.lc.key(key)[0] + 1}"
        return {_bare(key): _plain(value, (*path, key), source) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            source.places[(*path, index)] = f"{source.name}:{node.lc.item(index)[0] + 1}"
        return [_plain(value, (*path, index), source) for index, value in enumerate(node)]
    return _bare(node)


def _bare(node: object) -> bool | int | float | str | None:
    """Return a scalar, or a key, without ruamel's notes on its notation."""
    for plain in (bool, int, float, str):
        if isinstance(node, plain):
            return plain(node)
    return node if node is None else str(node)  # dates; no key of a recipe takes them


def _override(source: Source, override: str) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise RecipeError(
            [f"command line: {override!r}: an override reads key=value, as in method.r=16"]
        )
    try:
        node = _parse(text, f"command line: {dotted}")
    except RecipeError as error:
        hint = f"""quote what YAML reads otherwise, for the shell, too: '{dotted}="{text}"'"""
        raise RecipeError(error.problems, hint=hint) from None
    value = _plain(node, (), Source({}, "command line"))
    tree = source.tree
    if keys[0] in DEFAULT_NAMES and len(keys) > 1:
        tree.setdefault(keys[0], DEFAULT_NAMES[keys[0]])
    for depth, key in enumerate(keys[:-1], start=1):
        if depth == 1 and isinstance(tree.get(key), str) and key in SHORT_FORMS:
            tree[key] = {SHORT_FORMS[key]: tree[key]}
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            above = ".".join(keys[:depth])
            raise RecipeError([f"command line: {dotted}: {above} has no keys below it"])
    tree[keys[-1]] = value
    source.places[tuple(keys)] = "command line"


def _recipes_nearby(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path()
    found = sorted(str(item) for item in folder.glob("*.yaml"))
    return f"recipes in {folder}: {', '.join(found)}" if found else "give the path of a .yaml file"
