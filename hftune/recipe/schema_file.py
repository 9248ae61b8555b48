# SPDX-License-Identifier: Apache-2.0
"""The schema of recipes as others read it: plain JSON Schema, draft 2020-12, for editors and tools.

hftune's own check reads one keyword more, ``alsoAllowed``; here it is spelled out. It also holds a
mapping against the first form that has keys; so a form without keys behind it is left out here.
"""

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from hftune.core.registry import Schema

#: The schema of the tested set, beside the shipped recipes.
SCHEMA_FILE = "schema.json"
#: How a recipe tells an editor where its schema lies.
EDITOR_LINE = "# yaml-language-server: $schema="
#: What an editor shows stays on the property; the rest moves into the alternative.
SHOWN = ("description", "default")
READ_FROM = ("transformers", "peft")


def standard_schema(schema: Schema) -> Schema:
    """Return the recipe schema in the standard's own keywords, with its origin named."""
    origin = ", ".join(f"{package} {version(package)}" for package in READ_FROM)
    said = {"$comment": f"Made by `hftune schema` from {origin}."}
    head = {key: schema[key] for key in ("$schema", "title")}
    exported: Schema = {**head, **said, **_standard(schema)}
    return exported


def _standard(node: Any) -> Any:
    if isinstance(node, list):
        return [_standard(item) for item in node]
    if not isinstance(node, dict):
        return node
    inner = {key: _standard(value) for key, value in node.items() if key != "alsoAllowed"}
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
