# SPDX-License-Identifier: Apache-2.0
"""The schema of recipes for editors and tools: standard JSON Schema, draft 2020-12.

hftune's own check understands one more keyword, ``alsoAllowed``; the export replaces it. The check
also compares a mapping with the first object form only, so the export drops later object forms.
"""

from collections.abc import Iterator
from importlib.metadata import version

from hftune.core.registry import Schema

#: File of the schema for the tested versions, next to the shipped recipes.
SCHEMA_FILE = "schema.json"
#: Comment by which a recipe names its schema to an editor.
EDITOR_LINE = "# yaml-language-server: $schema="
#: Keywords that an editor shows; they stay on the property.
SHOWN = ("description", "default")
READ_FROM = ("transformers", "peft")


def standard_schema(schema: Schema) -> Schema:
    """Return the recipe schema in standard keywords, with a comment about its origin.

    Example:
        >>> steps = {"minimum": 1, "alsoAllowed": [-1], "default": -1}
        >>> own = {"$schema": "draft", "title": "recipe", "properties": {"max_steps": steps}}
        >>> standard_schema(own)["properties"]["max_steps"]
        {'anyOf': [{'minimum': 1}, {'enum': [-1]}], 'default': -1}
    """
    origin = ", ".join(f"{package} {version(package)}" for package in READ_FROM)
    said = {"$comment": f"Made by `hftune schema` from {origin}."}
    head = {key: schema[key] for key in ("$schema", "title")}
    exported: Schema = {**head, **said, **_standard(schema)}
    return exported


def _standard_value(node: object) -> object:
    if isinstance(node, list):
        return [_standard_value(item) for item in node]
    return _standard(node) if isinstance(node, dict) else node


def _standard(node: Schema) -> Schema:
    inner: Schema = {
        key: _standard_value(value) for key, value in node.items() if key != "alsoAllowed"
    }
    if "anyOf" in inner:
        inner["anyOf"] = list(_one_mapping(inner["anyOf"]))
    if "alsoAllowed" not in node:
        return inner
    shown = {key: inner.pop(key) for key in SHOWN if key in inner}
    return {"anyOf": [inner, {"enum": node["alsoAllowed"]}], **shown}


def _one_mapping(forms: list[Schema]) -> Iterator[Schema]:
    seen = False
    for form in forms:
        is_mapping = form.get("type") == "object"
        if not (is_mapping and seen):
            yield form
        seen = seen or is_mapping
