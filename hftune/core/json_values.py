# SPDX-License-Identifier: Apache-2.0
"""Check plain values against a JSON Schema, and describe a schema in words."""

import math
import operator
from collections.abc import Callable, Iterable, Sequence

from hftune.core.registry import Schema
from hftune.core.suggest import did_you_mean

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


def choices(word: object, known: Iterable[str]) -> str:
    """Return the end of a message: the nearest allowed name, or all of them.

    Example:
        >>> choices("linaer", ["linear", "cosine"])
        '; did you mean linear?'
        >>> choices("", ["linear", "cosine"])
        '; allowed: cosine, linear'
    """
    names = sorted(known)
    if near := did_you_mean(word, names):
        return near
    shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
    return f"; allowed: {shown}" if names else "; it takes no keys"


def mismatch(value: object, schema: Schema) -> str | None:
    """Return why a plain value does not fit a schema, or None if it fits.

    Example:
        >>> mismatch("3", {"type": "integer"}), mismatch(-1, {"type": "integer", "minimum": 0})
        ("expected a whole number, got the text '3'", 'must be at least 0, got -1')
    """
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
            return f"{value!r} is not allowed{choices(value, map(str, allowed))}"
    if not _has_type(value, schema.get("type")):
        return f"expected {describe(schema)}, got {show(value)}"
    if isinstance(value, list | tuple) and (complaint := _item_mismatch(value, schema)):
        return complaint
    return _outside_bounds(value, schema)


def _item_mismatch(values: Sequence[object], schema: Schema) -> str | None:
    forms = schema.get("prefixItems") or [schema.get("items", {})] * len(values)
    if len(forms) != len(values):
        return f"expected {len(forms)} items, got {len(values)}"
    complaints = [mismatch(value, form) for value, form in zip(values, forms, strict=True)]
    wrong = [(number, text) for number, text in enumerate(complaints, start=1) if text]
    return f"item {wrong[0][0]}: {wrong[0][1]}" if wrong else None


def describe(schema: Schema) -> str:
    """Describe the values that a schema allows.

    Example:
        >>> describe({"anyOf": [{"type": "number"}, {"enum": ["auto"]}]})
        'a number or one of auto'
    """
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(describe(option) for option in options))
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return show(schema["const"])
    words = {"object": "a mapping", "array": "a list", "string": "text", "null": "null"}
    words |= {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
    return words.get(schema.get("type", ""), "anything")


def show(value: object) -> str:
    """Return a value as YAML writes it; text is marked as text.

    Example:
        >>> show(None), show(True), show("3"), show(3)
        ('null', 'true', "the text '3'", '3')
    """
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return f"the text {value!r}" if isinstance(value, str) else repr(value)


def _has_type(value: object, name: str | None) -> bool:
    if name is None:
        return True
    if isinstance(value, bool) and name != "boolean":
        return False
    return isinstance(value, TYPES[name])


def _outside_bounds(value: object, schema: Schema) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return f"expected a finite number, got {value}"
    for keyword, (words, holds) in BOUNDS.items():
        if keyword in schema and not holds(value, schema[keyword]):
            return f"must be {words} {schema[keyword]}, got {value}"
    return None
