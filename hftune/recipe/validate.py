# SPDX-License-Identifier: Apache-2.0
"""Hold a recipe against the schema and say all that is wrong, each with its place.

Knows the keywords that :mod:`hftune.recipe.json_schema` writes, and answers in the recipe's own
terms: ``file:line: key: what came, what is allowed, did you mean ...``.
"""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hftune.core.errors import RecipeError
from hftune.core.suggest import did_you_mean
from hftune.recipe.json_schema import choice_names
from hftune.recipe.training_fields import Schema, refused_training
from hftune.recipe.yaml_source import KeyPath, Source

#: Sections that pick a technique by name, whose options are its own.
CHOICES = ("method", "loss")
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "object": (dict,),
    "array": (list, tuple),
}
BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "minimum": ("at least", operator.ge),
    "exclusiveMinimum": ("above", operator.gt),
    "maximum": ("at most", operator.le),
    "exclusiveMaximum": ("below", operator.lt),
}


def check(source: Source, schema: Schema) -> None:
    """Raise one :class:`RecipeError` that lists every problem of the recipe."""
    given = _Given(source, _homes(schema))
    problems = list(_object_problems(source.tree, schema, (), given))
    if problems:
        raise RecipeError(problems)


@dataclass(frozen=True)
class _Given:
    """A recipe, and where each key that a section may hold has its place."""

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


def _problems(value: Any, schema: Schema, path: KeyPath, given: _Given) -> Iterator[str]:
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


def _choice_problems(value: Any, schema: Schema, path: KeyPath, given: _Given) -> Iterator[str]:
    options = choice_names(schema)
    name = value.get("name") if isinstance(value, dict) else value
    where = f"{given.source.place(path)}: {_dotted(path)}"
    if not isinstance(name, str):
        yield f"{where}: expected a name, or a mapping with the key name; got {show(value)}"
    elif name not in options:
        yield f"{where}: unknown {path[0]} {name!r}{_choices(name, options)}"
    elif isinstance(value, dict):
        yield from _object_problems(value, options[name], path, given)


def _object_problems(
    value: dict[Any, Any], schema: Schema, path: KeyPath, given: _Given
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
    return f"unknown key{_choices(key, known)}"


def _choices(word: Any, known: Iterable[str]) -> str:
    names = sorted(known)
    if near := did_you_mean(word, names):
        return near
    shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
    return f"; allowed: {shown}" if names else "; it takes no keys"


def mismatch(value: Any, schema: Schema) -> str | None:
    """Return what is wrong with a plain value, or None when it fits."""
    if value in schema.get("alsoAllowed", ()):
        return None
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        complaints = [mismatch(value, option) for option in options]
        if None in complaints:
            return _outside_bounds(value, schema)
        near = [text for text in complaints if text and not text.startswith("expected")]
        return near[0] if near else f"expected {describe(schema)}, got {show(value)}"
    if "enum" in schema or "const" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        if value in allowed:
            return None
        if isinstance(value, str):
            return f"{value!r} is not allowed{_choices(value, map(str, allowed))}"
    if not _has_type(value, schema.get("type")):
        return f"expected {describe(schema)}, got {show(value)}"
    if isinstance(value, list | tuple) and (complaint := _item_mismatch(value, schema)):
        return complaint
    return _outside_bounds(value, schema)


def _item_mismatch(values: Sequence[Any], schema: Schema) -> str | None:
    forms = schema.get("prefixItems") or [schema.get("items", {})] * len(values)
    if len(forms) != len(values):
        return f"expected {len(forms)} items, got {len(values)}"
    complaints = [mismatch(value, form) for value, form in zip(values, forms, strict=True)]
    wrong = [(number, text) for number, text in enumerate(complaints, start=1) if text]
    return f"item {wrong[0][0]}: {wrong[0][1]}" if wrong else None


def describe(schema: Schema) -> str:
    """Return what a schema allows, in words."""
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(describe(option) for option in options))
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return show(schema["const"])
    words = {"object": "a mapping", "array": "a list", "string": "text", "null": "null"}
    words |= {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
    return words.get(schema.get("type", ""), "anything")


def show(value: Any) -> str:
    """Return a value as the reader wrote it, with its type where that is the point."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return f"the text {value!r}" if isinstance(value, str) else repr(value)


def _has_type(value: Any, name: str | None) -> bool:
    if name is None:
        return True
    if isinstance(value, bool) and name != "boolean":
        return False
    return isinstance(value, TYPES[name])


def _outside_bounds(value: Any, schema: Schema) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return f"expected a finite number, got {value}"
    for keyword, (words, holds) in BOUNDS.items():
        if keyword in schema and not holds(value, schema[keyword]):
            return f"must be {words} {schema[keyword]}, got {value}"
    return None


def _object_of(schema: Schema) -> Schema | None:
    """The object form of a schema, when it has one."""
    options = schema.get("anyOf", [schema])
    return next((option for option in options if option.get("type") == "object"), None)


def _objects_in_list(schema: Schema) -> Schema | None:
    """What the items of a schema's list form may be, when they may be mappings."""
    options = schema.get("anyOf", [schema])
    lists = (option["items"] for option in options if option.get("type") == "array")
    return next((items for items in lists if _object_of(items)), None)


def _dotted(path: KeyPath) -> str:
    words = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return "".join(words).removeprefix(".") or "recipe"
