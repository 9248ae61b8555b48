# SPDX-License-Identifier: Apache-2.0
"""Mix sources by weight: each gives its share of the rows."""

from collections.abc import Sequence
from typing import Literal

import datasets
import pyarrow as pa
from datasets import Dataset

from hftune.core.errors import HftuneError, RecipeError

StoppingStrategy = Literal["first_exhausted", "all_exhausted"]


def shares(weights: Sequence[float | None], sizes: Sequence[int]) -> list[float] | None:
    """Return the share of each source, or None if no source has a weight.

    If all sources have a weight, the weights are scaled to add up to 1. Sources without a weight
    divide the remainder of 1 in proportion to their rows.

    Args:
        weights: Weight of each source.
        sizes: Rows of each source.

    Raises:
        RecipeError: A weight is not above 0, or the weights leave nothing for the other sources.

    Example:
        >>> shares([3, 1], [10, 10])
        [0.75, 0.25]
        >>> shares([0.5, None, None], [10, 30, 10])
        [0.5, 0.375, 0.125]
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
        names: Names of the sources, for the message.

    Raises:
        HftuneError: Sources have other columns or other types of cells.

    Example:
        >>> one, two = (Dataset.from_dict({"text": [text]}) for text in ("a", "b"))
        >>> stacked([one, two], ["one", "two"])["text"][:]
        ['a', 'b']
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
    """Return rows of all sources, each drawn from a source that is chosen by its share.

    Args:
        parts: Rows of each source, with the same columns.
        probabilities: Share of each source.
        strategy: Whether to end with the first source that runs out, or to begin sources again
            until the last has run out once.
        seed: Seed of the draws.
    """
    mixed: Dataset = datasets.interleave_datasets(
        list(parts), probabilities=probabilities, seed=seed, stopping_strategy=strategy
    )
    return mixed


def _shape(rows: Dataset) -> set[str]:
    """Return the columns that every source of a mixture must have."""
    return set(rows.column_names) - {"group", "tools", "context_turns"}
