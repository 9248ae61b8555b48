# SPDX-License-Identifier: Apache-2.0
"""Tables of ``data.sampling`` and ``data.curriculum``: the examples of an epoch and their order."""

from typing import Literal

from hftune.core.sampling_rows import PacingRow, SamplingRow

SamplingName = Literal["balanced", "oversample", "undersample", "weighted"]
Difficulty = Literal["length", "rarity", "loss", "column"]
Pacing = Literal["linear", "root", "exponential", "staged"]

_ROWS = "hftune.data.sampling.row_sampler:"
_CURRICULUM = "hftune.data.sampling.curriculum:"

#: Values of ``data.sampling``.
SAMPLINGS: dict[SamplingName, SamplingRow] = {
    "balanced": SamplingRow(
        summary="Rows drawn with replacement, all classes equally likely.",
        target=f"{_ROWS}balanced",
        by_class=True,
    ),
    "oversample": SamplingRow(
        summary="As many rows of each class as the largest has.",
        target=f"{_ROWS}oversample",
        by_class=True,
    ),
    "undersample": SamplingRow(
        summary="As many rows of each class as the smallest has, drawn anew every epoch.",
        target=f"{_ROWS}undersample",
        by_class=True,
    ),
    "weighted": SamplingRow(
        summary="Rows drawn with replacement, in proportion to a column of weights.",
        target=f"{_ROWS}Weighted",
        reads_column=True,
    ),
}

#: Values of ``data.curriculum``: the measure of how hard a row is.
DIFFICULTIES: dict[Difficulty, SamplingRow] = {
    "length": SamplingRow(summary="The tokens of a row.", target=f"{_CURRICULUM}length"),
    "rarity": SamplingRow(
        summary="How unlikely the tokens of a row are together.", target=f"{_CURRICULUM}rarity"
    ),
    "loss": SamplingRow(summary="The loss of a reference model on the row.", needs_reference=True),
    "column": SamplingRow(summary="A number of one's own.", reads_column=True),
}

#: Values of ``data.curriculum.pacing``: how the share of known rows grows.
PACINGS: dict[Pacing, PacingRow] = {
    "linear": PacingRow(
        summary="In a straight line; the default.", target=f"{_CURRICULUM}linear_pacing"
    ),
    "root": PacingRow(
        summary="As a square root: fast at first.", target=f"{_CURRICULUM}root_pacing"
    ),
    "exponential": PacingRow(
        summary="As a power: slow at first.", target=f"{_CURRICULUM}exponential_pacing"
    ),
    "staged": PacingRow(
        summary="In equal steps, after equal times or when the metric stands still.",
        target=f"{_CURRICULUM}staged_pacing",
        in_stages=True,
    ),
}
