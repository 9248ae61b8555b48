# SPDX-License-Identifier: Apache-2.0
"""The sum over the denominator is torch's cross-entropy, for classifiers and language models."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hftune.core.errors import HftuneError
from hftune.losses.class_weights import ClassWeights
from hftune.losses.cross_entropy import CrossEntropy
from hftune.losses.loss import LabelStats
from tests.losses.given import Given

CLASSES = ["a", "b", "c", "d"]
WEIGHTS = [0.5, 2.0, 1.0, 0.0]


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 3 * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def language_labels() -> Tensor:
    """Three rows of six tokens; the first position is labelled in one, and one row is blank."""
    labels = torch.randint(0, 4, (3, 6), generator=torch.Generator().manual_seed(1))
    labels[0, :3] = -100
    labels[1, 4:] = -100
    labels[2] = -100
    return labels


def naive_pairs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the labels they predict, one position after the other."""
    ahead = logits.shape[1] - labels.shape[1]
    pairs = [
        (logits[b, ahead + t - 1], labels[b, t])
        for b in range(labels.shape[0])
        for t in range(1, labels.shape[1])
        if labels[b, t] != -100
    ]
    return torch.stack([row for row, _ in pairs]), torch.stack([label for _, label in pairs])


def run(
    logits: Tensor, labels: Tensor, weights: ClassWeights | None, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, total and gradient."""
    loss = CrossEntropy(class_weights=weights)
    causal = labels.dim() == 2
    loss.fit(LabelStats(classes=CLASSES, counts=[1] * 4, label_smoothing=smoothing, causal=causal))
    model = Given(logits)
    batch = {"labels": labels, "input_ids": torch.zeros(1)}
    total, outputs = loss.total(model, batch)
    assert outputs.logits is model.logits
    mean = total / loss.denominator(batch)
    (gradient,) = torch.autograd.grad(mean, model.logits)
    return mean.detach(), total.detach(), gradient


def reference(
    logits: Tensor, labels: Tensor, weights: list[float] | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    pairs = naive_pairs(logits, labels) if labels.dim() == 2 else (logits, labels)
    weight = None if weights is None else torch.tensor(weights, dtype=logits.dtype)
    mean = F.cross_entropy(*pairs, weight=weight, label_smoothing=smoothing)
    return mean.detach(), torch.autograd.grad(mean, logits)[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("kind", ["classifier", "blanks", "language", "virtual tokens"])
def test_equals_torch(kind: str, weights: list[float] | None, smoothing: float) -> None:
    if kind in {"classifier", "blanks"}:
        labels = torch.tensor([0, 1, 2, 1, 3, 0, 2, 2])
        labels[:2] = -100 if kind == "blanks" else labels[:2]
        logits = normal(8, 4)
    else:
        labels = language_labels()
        logits = normal(3, 6 if kind == "language" else 11, 4)
    mean, total, gradient = run(logits, labels, weights, smoothing)
    expected, expected_gradient = reference(logits, labels, weights, smoothing)
    assert total.dtype == torch.float64
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 2, 1, 3, 0]), language_labels()])
def test_parts_add_up(labels: Tensor, weights: list[float] | None) -> None:
    logits = normal(*labels.shape, 4)
    loss = CrossEntropy(class_weights=weights)
    loss.fit(LabelStats(classes=CLASSES, counts=[1] * 4, label_smoothing=0.2))

    def both(rows: slice) -> Tensor:
        batch = {"labels": labels[rows]}
        total, _ = loss.total(Given(logits[rows]), batch)
        return torch.stack([total, loss.denominator(batch)])

    whole = both(slice(None))
    single = [both(slice(i, i + 1)) for i in range(len(labels))]
    torch.testing.assert_close(torch.stack(single).sum(0), whole)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision(given: torch.dtype, expected: torch.dtype) -> None:
    logits = normal(4, 4).to(given)
    labels = torch.tensor([0, 1, 2, 3])
    mean, total, gradient = run(logits, labels, WEIGHTS, 0.0)
    assert total.dtype == expected
    assert gradient.dtype == given
    exact, _ = reference(logits.double(), labels, WEIGHTS, 0.0)
    torch.testing.assert_close(mean.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(2,), (2, 5)])
def test_blank_batch_counts_nothing(shape: tuple[int, ...]) -> None:
    labels = torch.full(shape, -100)
    model = Given(normal(*shape, 4))
    loss = CrossEntropy(class_weights=WEIGHTS)
    loss.fit(LabelStats(classes=CLASSES, counts=[1] * 4))
    total, _ = loss.total(model, {"labels": labels})
    total.backward()
    assert loss.denominator({"labels": labels}) == 0
    assert total == 0
    assert model.logits.grad.abs().max() == 0


def test_denominator_is_the_summed_weight() -> None:
    labels = torch.tensor([1, 1, 0, -100, 3])
    loss = CrossEntropy()
    loss.fit(LabelStats(classes=CLASSES, counts=[1] * 4))
    assert loss.denominator({"labels": labels}).item() == 4
    loss = CrossEntropy(class_weights=WEIGHTS)
    loss.fit(LabelStats(classes=CLASSES, counts=[1] * 4))
    assert loss.denominator({"labels": labels}).item() == 2 + 2 + 0.5 + 0


def test_logit_adjustment_adds_the_log_shares() -> None:
    logits, labels = normal(6, 4), torch.tensor([0, 1, 2, 3, 0, -100])
    loss = CrossEntropy(logit_adjustment=0.7)
    loss.fit(LabelStats(classes=CLASSES, counts=[60, 30, 10, 0]))
    batch = {"labels": labels}
    mean = loss.total(Given(logits), batch)[0] / loss.denominator(batch)
    shares = torch.tensor([60, 30, 10, 1], dtype=torch.float64) / 101  # as if one row had the last
    expected = F.cross_entropy(logits[:5] + 0.7 * shares.log(), labels[:5])
    torch.testing.assert_close(mean, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.6, 0.3, 0.1]),
        ({"class_weights": "balanced"}, [1 / 3, 1 / 3, 1 / 3]),
        ({"class_weights": [1.0, 2.0, 0.0]}, [0.5, 0.5, 0.0]),
        ({"logit_adjustment": 1.0}, [1 / 3, 1 / 3, 1 / 3]),
        ({"logit_adjustment": 0.5}, [0.6**0.5, 0.3**0.5, 0.1**0.5]),
    ],
)
def test_prior_is_what_a_model_without_inputs_learns(options: dict, expected: list[float]) -> None:
    """Logits that are parameters, fitted to 6, 3 and 1 rows, say the shares that the loss tells."""
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    loss = CrossEntropy(**options)
    loss.fit(LabelStats(classes=["a", "b", "c"], counts=[6, 3, 1]))
    told = loss.prior()
    assert told is not None
    torch.testing.assert_close(told.double(), torch.tensor(expected).double() / sum(expected))
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss.cross_entropy(logits.expand(10, 3), labels)
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(logits.softmax(0), told.double(), atol=1e-3, rtol=0)


def test_beta_without_effective_number_is_refused() -> None:
    with pytest.raises(HftuneError, match="effective_number"):
        CrossEntropy(class_weights="balanced", beta=0.9).fit(
            LabelStats(classes=CLASSES, counts=[1] * 4)
        )
