# SPDX-License-Identifier: Apache-2.0
"""``hftune schema``: the JSON Schema of recipes, for editors and other programs."""

import json
from pathlib import Path

from hftune.core.files import atomic_write
from hftune.core.registry import Schema
from hftune.recipe.json_schema import recipe_schema
from hftune.recipe.schema_file import standard_schema


def schema(output: Path | None = None) -> Schema:
    """Return the JSON Schema of recipes for the installed versions.

    Args:
        output: A file to write it to.

    Returns:
        The schema, draft 2020-12, without references.
    """
    exported = standard_schema(recipe_schema())
    if output is not None:
        atomic_write(output, schema_text(exported))
    return exported


def schema_text(exported: Schema) -> str:
    """Return the text of the schema file.

    Example:
        >>> schema_text({"type": "object"}).split()
        ['{', '"type":', '"object"', '}']
    """
    return json.dumps(exported, indent=1, ensure_ascii=False) + "\n"
