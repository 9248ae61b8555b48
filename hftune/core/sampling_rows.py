# SPDX-License-Identifier: Apache-2.0
"""Rows of samplings, difficulties and pacings: the examples of an epoch and their order."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SamplingRow:
    """A value of ``data.sampling``, or of ``data.curriculum``, which orders rows by difficulty.

    Attributes:
        summary: One line for people.
        target: The function that makes a row sampler from the classes or weights of all rows, or
            returns how hard rows are from their tokens, as ``package.module:name``; None if the
            difficulties are given.
        by_class: Whether it needs the class of each row.
        reads_column: Whether it reads numbers from a column.
        needs_reference: Whether it needs the losses of a reference model.
    """

    summary: str
    target: str | None = None
    by_class: bool = False
    reads_column: bool = False
    needs_reference: bool = False


@dataclass(frozen=True, kw_only=True)
class PacingRow:
    """A value of ``data.curriculum.pacing``.

    Attributes:
        summary: One line for people.
        target: The function of the share of known rows, as ``package.module:name``.
        in_stages: Whether the share grows in stages.
    """

    summary: str
    target: str
    in_stages: bool = False
