# SPDX-License-Identifier: Apache-2.0
"""Sources mixed by weight: what share of the rows each one gives."""

from collections.abc import Sequence
from typing import Literal

import datasets
import pyarrow as pa
from datasets import Dataset

from hftune.core.errors import HftuneError, RecipeError

StoppingStrategy = Literal["first_exhausted", "all_exhausted"]


def shares(weights: Sequence[float | None], sizes: Sequence[int]) -> list[float] | None:
    """Return the share of each source, or None where no source has a weight.

    Weights of all sources are made to add up to 1. Sources without a weight beside others with one
    share what these leave of 1, in proportion to their rows.

    Args:
        weights: One a source.
        sizes: Rows of each source.

    Raises:
        RecipeError: A weight is not above 0, or the weights leave nothing for the other sources.
    """
    given = [weight for weight in weights if weight is not None]
    if not given:
        return None
    if min(given) <= 0:
        raise RecipeError([f"data.path: a weight must be above 0, got {min(given):g}"])
    if len(given) == len(weights):
        return [weight / sum(given) for weight in given]
    left = 1 - sum(given)
    if left <= 0:
        raise RecipeError(
            [f"data.path: weights of {sum(given):g} leave nothing for the sources without one"],
            hint="give every source a weight, or let the weights add up to less than 1",
        )
    without = sum(size for size, weight in zip(sizes, weights, strict=True) if weight is None)
    return [
        left * size / without if weight is None else weight
        for size, weight in zip(sizes, weights, strict=True)
    ]


def stacked(parts: Sequence[Dataset], names: Sequence[str]) -> Dataset:
    """Return the rows of all sources, one source after the other.

    Args:
        parts: Selected rows of each source.
        names: What the sources are called, for the message.

    Raises:
        HftuneError: Sources have other columns or other types of cells.
    """
    for part, name in zip(parts, names, strict=True):
        shape, first = _shape(part), _shape(parts[0])
        if shape != first:
            raise HftuneError(
                f"{name} gives {' and '.join(sorted(shape))}, {names[0]} gives "
                f"{' and '.join(sorted(first))}; rows of one mixture have one shape",
                hint="columns: {instruction: ..., output: ...} in a source makes conversations "
                "of questions and answers",
            )
    try:
        tables = [part.with_format("arrow")[:] for part in parts]
        return Dataset(pa.concat_tables(tables, promote_options="permissive"))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise HftuneError(f"{', '.join(names)}: types of cells differ: {error}") from error


def interleaved(
    parts: Sequence[Dataset], probabilities: list[float], strategy: StoppingStrategy, seed: int
) -> Dataset:
    """Return rows drawn from the sources in turn, each time from one chosen by its share.

    Args:
        parts: Rows of each source, with the same columns.
        probabilities: Share of each source.
        strategy: Whether to end with the first source that runs out, or to begin sources again
            until the last has run out once.
        seed: Same seed, same draws.
    """
    mixed: Dataset = datasets.interleave_datasets(
        list(parts), probabilities=probabilities, seed=seed, stopping_strategy=strategy
    )
    return mixed


def _shape(rows: Dataset) -> set[str]:
    """The columns that every source of a mixture must have."""
    return set(rows.column_names) - {"group", "tools", "context_turns"}
