# SPDX-License-Identifier: Apache-2.0
"""Weights by class: scikit-learn's, the inverse, the effective number, given ones, refused ones."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from hftune.core.errors import HftuneError
from hftune.losses.class_weights import ClassWeights, class_weight_tensor
from hftune.losses.cross_entropy import CrossEntropy
from hftune.losses.loss import LabelStats

CLASSES = ["a", "b", "c", "d"]


@pytest.mark.parametrize("counts", [(30, 20, 10), (1, 1, 998), (5, 5, 5)])
def test_balanced_is_sklearns(counts: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(3), counts)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    weight = class_weight_tensor("balanced", ["a", "b", "c"], counts)
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6)


def test_absent_class_weighs_one() -> None:
    labels = np.repeat([0, 2], [30, 10])
    present = compute_class_weight("balanced", classes=np.array([0, 2]), y=labels)
    weight = class_weight_tensor("balanced", ["a", "b", "c"], [30, 0, 10])
    np.testing.assert_allclose(weight.numpy(), [present[0], 1.0, present[1]], rtol=1e-6)


def test_names_and_lists() -> None:
    assert class_weight_tensor({"c": 3, "a": 0.5}, CLASSES, []).tolist() == [0.5, 1.0, 3.0, 1.0]
    weight = class_weight_tensor([1, 2, 3, 4], CLASSES, [])
    assert weight.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0, "z": 2.0, "y": 2.0}, "unknown labels y, z\nlabels: a, b, c, d"),
        ([1.0, 2.0], "2 weights for 4 labels\nlabels in order: a, b, c, d"),
        ([1.0, -0.1, 1.0, 1.0], "not be negative|not negative"),
        ({"a": -1.0}, "not be negative|not negative"),
        ([0.0] * 4, "nor all of them zero"),
        ([float("nan"), 1.0, 1.0, 1.0], "class_weights"),
        ([float("inf"), 1.0, 1.0, 1.0], "class_weights"),
    ],
)
def test_refused(weights: ClassWeights, message: str) -> None:
    with pytest.raises(HftuneError, match=message):
        CrossEntropy(class_weights=weights).fit(LabelStats(classes=CLASSES, counts=[1] * 4))


@pytest.mark.parametrize("counts", [(30, 20, 10), (1, 1, 998)])
def test_inverse_is_balanced_on_another_scale(counts: tuple[int, ...]) -> None:
    weight = class_weight_tensor("inverse", ["a", "b", "c"], counts).double()
    shares = 1 / torch.tensor(counts, dtype=torch.float64)
    torch.testing.assert_close(weight, shares / shares.sum() * 3, atol=1e-6, rtol=0)
    balanced = class_weight_tensor("balanced", ["a", "b", "c"], counts).double()
    ratio = weight / balanced
    torch.testing.assert_close(ratio, ratio[:1].expand(3), atol=0, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999])
def test_effective_number_is_that_of_the_paper(beta: float) -> None:
    """Cui et al.: E_n is 1 + beta + ... + beta^(n-1); weights are 1 / E_n, with the sum C."""
    counts = (50, 5, 1)
    effective = [sum(beta**power for power in range(n)) for n in counts]
    shares = np.array([1 / number for number in effective])
    weight = class_weight_tensor("effective_number", ["a", "b", "c"], counts, beta)
    np.testing.assert_allclose(weight.numpy(), shares / shares.sum() * 3, rtol=1e-6)
    if beta == 0:
        assert weight.tolist() == [1.0, 1.0, 1.0]


def test_effective_number_lies_between_equal_and_inverse() -> None:
    counts = (900, 90, 9)
    inverse = class_weight_tensor("inverse", ["a", "b", "c"], counts)
    ratios = []
    for beta in (0.9, 0.99, 0.999, 0.99999):
        weight = class_weight_tensor("effective_number", ["a", "b", "c"], counts, beta)
        ratios.append(float(weight[2] / weight[0]))
    assert 1 < ratios[0] < ratios[1] < ratios[2] < ratios[3]
    assert ratios[3] == pytest.approx(float(inverse[2] / inverse[0]), rel=0.01)
    default = class_weight_tensor("effective_number", ["a", "b", "c"], counts)
    assert float(default[2] / default[0]) == pytest.approx(ratios[2])


@pytest.mark.parametrize("kind", ["balanced", "inverse", "effective_number"])
def test_a_class_without_rows_changes_nothing(kind: ClassWeights) -> None:
    with_it = class_weight_tensor(kind, ["a", "b", "c"], [30, 0, 10])
    without = class_weight_tensor(kind, ["a", "c"], [30, 10])
    assert with_it.tolist() == [without[0], 1.0, without[1]]
