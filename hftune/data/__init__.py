# SPDX-License-Identifier: Apache-2.0
"""Rows: read, split, batched. The demo data, samplings and curricula by name."""

from typing import Literal

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

SamplingName = Literal["balanced", "oversample", "undersample", "weighted"]
Difficulty = Literal["length", "rarity", "loss", "column"]
Pacing = Literal["linear", "root", "exponential", "staged"]

#: Values of ``data.sampling``.
SAMPLINGS: dict[SamplingName, str] = {
    "balanced": "Rows drawn with replacement, all classes equally likely.",
    "oversample": "As many rows of each class as the largest has.",
    "undersample": "As many rows of each class as the smallest has, drawn anew every epoch.",
    "weighted": "Rows drawn with replacement, in proportion to a column of weights.",
}

#: Values of ``data.curriculum``: what makes a row hard.
DIFFICULTIES: dict[Difficulty, str] = {
    "length": "The tokens of a row.",
    "rarity": "How unlikely the tokens of a row are together.",
    "loss": "The loss of a reference model on the row.",
    "column": "A number of one's own.",
}

#: Values of ``data.curriculum.pacing``: how the share of known rows grows.
PACINGS: dict[Pacing, str] = {
    "linear": "In a straight line; the default.",
    "root": "As a square root: fast at first.",
    "exponential": "As a power: slow at first.",
    "staged": "In equal steps, after equal times or when the metric stands still.",
}
