# SPDX-License-Identifier: Apache-2.0
"""``hftune schema``: what a recipe may say, as JSON Schema for editors and other programs."""

import json
from pathlib import Path
from typing import Any

from hftune.core.files import atomic_write
from hftune.recipe.json_schema import recipe_schema
from hftune.recipe.schema_file import standard_schema


def schema(output: Path | None = None) -> dict[str, Any]:
    """Return the JSON Schema of recipes for the installed versions.

    Args:
        output: Write it here, too.

    Returns:
        The schema, draft 2020-12, without references.
    """
    exported = standard_schema(recipe_schema())
    if output is not None:
        atomic_write(output, schema_text(exported))
    return exported


def schema_text(exported: dict[str, Any]) -> str:
    """Return the schema as the file holds it."""
    return json.dumps(exported, indent=1, ensure_ascii=False) + "\n"
