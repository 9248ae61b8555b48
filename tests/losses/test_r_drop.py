# SPDX-License-Identifier: Apache-2.0
"""R-Drop: two cross-entropies and torch's divergences, and models that have nothing to drop."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from hftune.core.errors import HftuneError
from hftune.losses.cross_entropy import CrossEntropy
from hftune.losses.loss import LabelStats
from hftune.losses.r_drop import RDrop, divergence
from tests.losses.given import Given

WEIGHTS = [0.5, 2.0, 1.0]
TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8,
        "vocab_size": 8}  # fmt: skip


class TwoDraws(nn.Module):
    """Answers the first copy of the batch with some logits and the second with others."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.cat([first, second]))

    def forward(self, input_ids: Tensor) -> Any:
        assert torch.equal(*input_ids.chunk(2))
        return SimpleNamespace(logits=self.both)


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def fitted(causal: bool = False, **options: Any) -> RDrop:
    loss = RDrop(**options)
    loss.fit(LabelStats(classes=["a", "b", "c"], counts=[1] * 3, causal=causal))
    return loss


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_equals_the_paper_term_by_term(weights: list[float] | None) -> None:
    first, second = normal(0, 5, 3), normal(1, 5, 3)
    labels = torch.tensor([0, 1, -100, 2, 1])
    loss = fitted(alpha=0.7, class_weights=weights)
    batch = {"labels": labels, "input_ids": torch.arange(5)}
    total, _ = loss.total(TwoDraws(first, second), batch)
    expected = torch.zeros((), dtype=torch.float64)
    for row, label in enumerate(labels.tolist()):
        if label == -100:
            continue
        p, q = first[row].log_softmax(0), second[row].log_softmax(0)
        kl = F.kl_div(q, p, log_target=True, reduction="sum")
        kl_back = F.kl_div(p, q, log_target=True, reduction="sum")
        one = -(p[label] + q[label]) / 2 + 0.7 * (kl + kl_back) / 2
        expected += one * (weights[label] if weights else 1)
    torch.testing.assert_close(total, expected)
    assert loss.denominator(batch) == (sum([0.5, 2.0, 1.0, 2.0]) if weights else 4)


def test_equal_draws_are_cross_entropy() -> None:
    logits, labels = normal(0, 4, 3), torch.tensor([0, 1, 2, 1])
    batch = {"labels": labels, "input_ids": torch.arange(4)}
    total, _ = fitted(alpha=3.0).total(TwoDraws(logits, logits), batch)
    plain = CrossEntropy()
    plain.fit(LabelStats(classes=["a", "b", "c"], counts=[1] * 3))
    torch.testing.assert_close(total, plain.total(Given(logits), batch)[0])


def test_tokens_of_a_language_model() -> None:
    first, second = normal(0, 2, 4, 3), normal(1, 2, 4, 3)
    labels = torch.tensor([[9, 1, -100, 2], [9, -100, -100, 0]])
    batch = {"labels": labels, "input_ids": torch.arange(2)}
    total, _ = fitted(causal=True, alpha=1.0).total(TwoDraws(first, second), batch)
    places = [(0, 0, 1), (0, 2, 2), (1, 2, 0)]  # row, position, next token
    p = torch.stack([first[b, t] for b, t, _ in places]).log_softmax(1)
    q = torch.stack([second[b, t] for b, t, _ in places]).log_softmax(1)
    tokens = torch.tensor([token for *_, token in places])
    nll = (F.nll_loss(p, tokens, reduction="sum") + F.nll_loss(q, tokens, reduction="sum")) / 2
    torch.testing.assert_close(total, nll + divergence(p, q).sum())


def test_a_model_without_dropout_is_refused() -> None:
    RDrop().check(BertForSequenceClassification(BertConfig(**TINY)))  # 0.1 by default
    without = BertConfig(**TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with pytest.raises(HftuneError, match="this model has none"):
        RDrop().check(BertForSequenceClassification(without))
    llama = LlamaForCausalLM(LlamaConfig(**TINY))
    with pytest.raises(HftuneError, match="this model has none"):
        RDrop().check(llama)
    llama.model.layers[0].mlp.up_proj = nn.Sequential(nn.Dropout(0.1), llama.model.layers[0].mlp)
    RDrop().check(llama)  # as with lora_dropout
    RDrop().check(LlamaForCausalLM(LlamaConfig(**TINY, attention_dropout=0.1)))
