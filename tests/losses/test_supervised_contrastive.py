# SPDX-License-Identifier: Apache-2.0
"""The contrastive term: the paper's sums in loops, equal rows, rows alone; beside cross-entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, T5Config

from hftune.core.errors import HftuneError
from hftune.losses.loss import LabelStats
from hftune.losses.supervised_contrastive import SupervisedContrastive, contrastive_loss


def naive(vectors: Tensor, labels: list[int], temperature: float) -> list[float]:
    z = [vector / vector.norm() for vector in vectors.detach()]
    losses = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        below = sum(math.exp(float(z[i] @ z[a]) / temperature) for a in others)
        terms = [math.log(math.exp(float(z[i] @ z[p]) / temperature) / below) for p in positives]
        losses.append(-sum(terms) / len(terms) if terms else 0.0)
    return losses


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_the_paper(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    labels = [0, 1, 0, 2, 1, 0, 3]  # 2 and 3 are alone
    losses = contrastive_loss(vectors, torch.tensor(labels), temperature)
    assert losses.tolist() == pytest.approx(naive(vectors, labels, temperature))


def test_equal_rows_cost_the_logarithm_of_the_others() -> None:
    losses = contrastive_loss(torch.ones(5, 3), torch.tensor([0, 0, 1, 1, 1]), 0.1)
    torch.testing.assert_close(losses, torch.full((5,), math.log(4)))


@pytest.mark.parametrize("rows", [0, 1])
def test_no_company_no_gradient(rows: int) -> None:
    vectors = torch.ones(rows, 3, requires_grad=True)
    contrastive_loss(vectors, torch.zeros(rows, dtype=torch.long), 0.1).sum().backward()
    assert vectors.grad.eq(0).all()


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_beside_cross_entropy(share: float) -> None:
    """A real encoder, a padded row and a blank one, the mean over the real tokens."""
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=8, num_labels=3)  # fmt: skip
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).double().eval()
    ids = torch.randint(0, 9, (5, 6))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 0, -100, 1])}
    weights = [1.0, 3.0, 1.0]
    loss = SupervisedContrastive(contrastive_weight=share, class_weights=weights)
    loss.fit(LabelStats(classes=["a", "b", "c"], counts=[1] * 3))
    total, outputs = loss.total(model, batch)

    kept, labels = [0, 1, 2, 4], torch.tensor([0, 1, 0, 1])
    states = model.bert(ids, attention_mask=mask).last_hidden_state
    vectors = torch.stack([states[i, : int(mask[i].sum())].mean(0) for i in kept])
    apart = sum(
        weights[label] * value
        for label, value in zip(labels, naive(vectors, labels.tolist(), 0.1), strict=True)
    )
    nll = F.cross_entropy(
        outputs.logits[kept], labels, weight=torch.tensor(weights).double(), reduction="sum"
    )
    assert total.item() == pytest.approx(((1 - share) * nll + share * apart).item())
    assert loss.denominator(batch) == 1 + 3 + 1 + 3


def test_a_model_of_two_halves_is_refused() -> None:
    model = torch.nn.Module()
    model.config = T5Config()
    with pytest.raises(HftuneError, match="t5 is both"):
        SupervisedContrastive().check(model)
