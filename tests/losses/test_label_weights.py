# SPDX-License-Identifier: Apache-2.0
"""Weights by label: in order, by name, and what is refused."""

import math
from typing import Any

import pytest
import torch

from hftune.core.errors import HftuneError
from hftune.losses.label_weights import label_weights

LABELS = ["0", "1", "2"]


def test_a_list_stands_in_label_order() -> None:
    assert torch.equal(label_weights("k", [3, 1, 0.5], LABELS), torch.tensor([3, 1, 0.5]))


def test_names_left_out_weigh_one_and_numbers_are_names() -> None:
    given: Any = {2: 4, "0": 0}
    assert torch.equal(label_weights("k", given, LABELS), torch.tensor([0.0, 1.0, 4.0]))


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"3": 1.0, "1": 2.0}, "k: unknown labels 3", "labels: 0, 1, 2"),
        ([1.0, 2.0], "k: 2 weights for 3 labels", "labels in order: 0, 1, 2"),
        ([1.0, math.nan, 1.0], "k: weights must be finite", None),
    ],
)
def test_refused(given: Any, message: str, hint: str | None) -> None:
    with pytest.raises(HftuneError) as caught:
        label_weights("k", given, LABELS)
    assert str(caught.value).startswith(message)
    assert caught.value.hint == hint
