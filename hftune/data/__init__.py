# SPDX-License-Identifier: Apache-2.0
"""Examples: read, split and batched; table of the demo data."""

from hftune.core.task_rows import DemoDataRow

DEMO_DATA = {
    "demo:docstrings": DemoDataRow(
        target="hftune.data.docstrings:docstring_rows",
        summary="Docstrings of the installed packages: tell the package, or write the summary.",
        columns={
            "text-classification": {"text": "summary", "label": "package", "group": "module"},
            "text2text-generation": {"text": "signature", "target": "summary", "group": "module"},
            "text-generation": {"group": "module"},
        },
    ),
}
