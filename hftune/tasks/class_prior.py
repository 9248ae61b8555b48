# SPDX-License-Identifier: Apache-2.0
"""Class shares: those where a model will be used, and those that its probabilities assume."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hftune.core.errors import HftuneError

Prior = Literal["uniform", "estimated"] | list[float] | dict[str, float]
ROUNDING = 1e-3
NAMED = 20


def as_shares(prior: Prior, names: Sequence[str]) -> NDArray[Any]:
    """Return the share of each class, shape ``(classes,)``, with the sum 1.

    Args:
        prior: ``uniform``, shares in label order, or label name -> share; of every class.
            ``estimated`` has none before there are rows, and stands for equal ones.
        names: Class names by id.

    Raises:
        HftuneError: A class is unknown or lacks a share, or the shares are not above zero with the
            sum 1.
    """
    if isinstance(prior, str):
        return np.full(len(names), 1 / len(names))
    if isinstance(prior, Mapping):
        by_name = {str(name): share for name, share in prior.items()}
        unknown = sorted(by_name.keys() - set(names))
        missing = [name for name in names if name not in by_name]
        if unknown or missing:
            word, which = ("unknown", unknown) if unknown else ("no share of", missing)
            raise HftuneError(
                f"evaluation.prior: {word} {', '.join(which[:NAMED])}",
                hint=f"labels: {', '.join(names[:NAMED])}",
            )
        prior = [by_name[name] for name in names]
    if len(prior) != len(names):
        raise HftuneError(
            f"evaluation.prior: {len(prior)} shares for {len(names)} labels",
            hint=f"labels in order: {', '.join(names[:NAMED])}",
        )
    shares = np.array(prior, dtype=np.float64)
    if not (shares > 0).all() or abs(shares.sum() - 1) > ROUNDING:
        raise HftuneError(
            f"evaluation.prior: shares are above zero and sum to 1, not to {shares.sum():.4g}",
            hint="leave out of the data what will never occur",
        )
    normalized: NDArray[Any] = shares / shares.sum()
    return normalized


def shares_by_name(shares: Sequence[float] | None, names: Sequence[str]) -> dict[str, float]:
    """Return what a loss says of the shares, by name.

    Raises:
        HftuneError: It says nothing, or a class has no share to correct.
    """
    if shares is None:
        raise HftuneError(
            "evaluation.prior: the loss does not tell what shares its probabilities assume",
            hint="a loss of your own tells it by prior()",
        )
    by_name = dict(zip(names, shares, strict=True))
    if absent := [name for name, share in by_name.items() if not share > 0]:
        raise HftuneError(
            "evaluation.prior: there is nothing to correct where no training row counts, as for "
            f"{', '.join(absent[:NAMED])}"
        )
    return by_name
