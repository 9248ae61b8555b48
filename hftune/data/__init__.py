# SPDX-License-Identifier: Apache-2.0
"""Rows: read, split, batched. The demo data by name."""

from hftune.core.rows import Row

DEMO_DATA = {
    "demo:docstrings": Row(
        target="hftune.data.docstrings:docstring_rows",
        summary="Docstrings of the installed packages: tell the package, or write the summary.",
        tasks=("text-classification", "text-generation"),
    ),
}
