# SPDX-License-Identifier: Apache-2.0
"""Registry rows of samplings, difficulties and pacings: the rows of an epoch and their order."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SamplingRow:
    """A value of ``data.sampling``, or a measure of difficulty for ``data.curriculum``.

    Attributes:
        summary: One line for people.
        target: Function that makes a row sampler from the classes or weights of all rows, or
            computes the difficulties of rows from their tokens, as ``package.module:name``; None if
            the difficulties are given.
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
        target: Function that returns the share of rows in use, as ``package.module:name``.
        in_stages: Whether the share grows in stages.
    """

    summary: str
    target: str
    in_stages: bool = False
