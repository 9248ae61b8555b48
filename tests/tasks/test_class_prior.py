# SPDX-License-Identifier: Apache-2.0
"""Class shares as a recipe gives them, and what a loss says of its own."""

from typing import Any

import pytest

from hftune.core.errors import HftuneError
from hftune.tasks.class_prior import as_shares, shares_by_name

NAMES = ["a", "b", "3"]


def test_forms() -> None:
    assert as_shares("uniform", NAMES).tolist() == pytest.approx([1 / 3] * 3)
    assert as_shares([0.2, 0.3, 0.5], NAMES).tolist() == pytest.approx([0.2, 0.3, 0.5])
    given: Any = {3: 0.5, "b": 0.3, "a": 0.2}
    assert as_shares(given, NAMES).tolist() == pytest.approx([0.2, 0.3, 0.5])
    assert as_shares([0.333, 0.333, 0.3335], NAMES).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ([0.5, 0.5], "2 shares for 3 labels"),
        ({"a": 0.5, "b": 0.5}, "no share of 3"),
        ({"a": 0.2, "b": 0.3, "3": 0.3, "z": 0.2}, "unknown z"),
        ([0.5, 0.5, 0.0], "above zero"),
        ([1.5, -1.0, 0.5], "above zero"),
        ([20, 30, 50], "sum to 1, not to 100"),
        ([0.5, 0.5, float("nan")], "above zero"),
    ],
)
def test_refused(prior: Any, message: str) -> None:
    with pytest.raises(HftuneError, match=message):
        as_shares(prior, NAMES)


def test_what_a_loss_tells() -> None:
    assert shares_by_name([0.2, 0.3, 0.5], NAMES) == {"a": 0.2, "b": 0.3, "3": 0.5}
    with pytest.raises(HftuneError, match="the loss does not tell"):
        shares_by_name(None, NAMES)
    with pytest.raises(HftuneError, match="no training row counts, as for b"):
        shares_by_name([0.5, 0.0, 0.5], NAMES)
