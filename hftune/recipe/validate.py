# SPDX-License-Identifier: Apache-2.0
"""Check a recipe against the schema, and report every problem with its place.

The check knows the keywords that :mod:`hftune.recipe.json_schema` writes. A problem reads
``file:line: key: given value, allowed values, did you mean ...``.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hftune.core.errors import RecipeError
from hftune.core.json_values import choices, mismatch, show
from hftune.core.registry import Schema
from hftune.recipe.json_schema import choice_names
from hftune.recipe.training_fields import refused_training
from hftune.recipe.yaml_source import KeyPath, Source

#: Sections that pick a technique by name and hold its options.
CHOICES = ("method", "loss")


def check(source: Source, schema: Schema) -> None:
    """Raise one :class:`RecipeError` that lists every problem of the recipe.

    Example:
        >>> schema = {"properties": {"task": {"type": "string"}}, "required": ["task"]}
        >>> check(Source({"task": 3}, "mine.yaml"), schema)
        Traceback (most recent call last):
        hftune.core.errors.RecipeError: mine.yaml: task: expected text, got 3
    """
    given = _Given(source, _homes(schema))
    problems = list(_object_problems(source.tree, schema, (), given))
    if problems:
        raise RecipeError(problems)


@dataclass(frozen=True)
class _Given:
    """A recipe, and the sections that each known key may stand in."""

    source: Source
    homes: dict[str, list[str]]


def _homes(schema: Schema) -> dict[str, list[str]]:
    homes: dict[str, list[str]] = {}
    for section, part in schema["properties"].items():
        homes.setdefault(section, []).append(f"the section {section}")
        objects = choice_names(part).values() if section in CHOICES else [_object_of(part)]
        for key in dict.fromkeys(key for one in objects if one for key in one["properties"]):
            homes.setdefault(key, []).append(f"{section}.{key}")
    return homes


def _problems(value: object, schema: Schema, path: KeyPath, given: _Given) -> Iterator[str]:
    section = path[0] if len(path) == 1 else None
    if section in CHOICES:
        yield from _choice_problems(value, schema, path, given)
    elif isinstance(value, dict) and (inner := _object_of(schema)):
        yield from _object_problems(value, inner, path, given)
    elif isinstance(value, list | tuple) and (items := _objects_in_list(schema)):
        for index, item in enumerate(value):
            yield from _problems(item, items, (*path, index), given)
    elif complaint := mismatch(value, schema):
        yield f"{given.source.place(path)}: {_dotted(path)}: {complaint}"


def _choice_problems(value: object, schema: Schema, path: KeyPath, given: _Given) -> Iterator[str]:
    options = choice_names(schema)
    name = value.get("name") if isinstance(value, dict) else value
    where = f"{given.source.place(path)}: {_dotted(path)}"
    if not isinstance(name, str):
        yield f"{where}: expected a name, or a mapping with the key name; got {show(value)}"
    elif name not in options:
        yield f"{where}: unknown {path[0]} {name!r}{choices(name, options)}"
    elif isinstance(value, dict):
        yield from _object_problems(value, options[name], path, given)


def _object_problems(
    value: dict[Any, object], schema: Schema, path: KeyPath, given: _Given
) -> Iterator[str]:
    known = schema.get("properties", {})
    for key in schema.get("required", ()):
        if key not in value:
            yield f"{given.source.place(path)}: {_dotted((*path, key))}: missing"
    for key, item in value.items():
        here = (*path, key)
        if key in known:
            yield from _problems(item, known[key], here, given)
        elif schema.get("additionalProperties") is False:
            complaint = _unknown(key, known, path, given)
            yield f"{given.source.place(here)}: {_dotted(here)}: {complaint}"
        elif isinstance(schema.get("additionalProperties"), dict):
            yield from _problems(item, schema["additionalProperties"], here, given)


def _unknown(key: Any, known: Iterable[str], path: KeyPath, given: _Given) -> str:
    if path == ("training",) and isinstance(key, str) and (reason := refused_training(key)):
        return f"not taken: {reason}"
    elsewhere = [home for home in given.homes.get(key, ()) if home != _dotted((*path, key))]
    if elsewhere:
        return f"unknown key here; did you mean {' or '.join(elsewhere)}?"
    return f"unknown key{choices(key, known)}"


def _object_of(schema: Schema) -> Schema | None:
    """Return the object form of a schema, or None."""
    options = schema.get("anyOf", [schema])
    return next((option for option in options if option.get("type") == "object"), None)


def _objects_in_list(schema: Schema) -> Schema | None:
    """Return the schema of the items of a list form, if the items may be mappings, or None."""
    options = schema.get("anyOf", [schema])
    lists = (option["items"] for option in options if option.get("type") == "array")
    return next((items for items in lists if _object_of(items)), None)


def _dotted(path: KeyPath) -> str:
    words = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return "".join(words).removeprefix(".") or "recipe"
