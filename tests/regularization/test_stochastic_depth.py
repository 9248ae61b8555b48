# SPDX-License-Identifier: Apache-2.0
"""Layers that rows pass by: how often, what comes out in the mean, and nothing in evaluation."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import ResNetConfig, ResNetModel

from hftune import HftuneError
from hftune.core.errors import RunError
from hftune.regularization.stochastic_depth import StochasticDepth, layer_rates, some_rows
from tests.methods.tiny_models import batch, build


def attached(model: Any, rate: float) -> StochasticDepth:
    depth = StochasticDepth(model, rate)
    depth.on_train_begin(None, None, None)
    return depth


def test_rates_rise_with_depth_and_begin_anew_in_a_decoder() -> None:
    assert list(layer_rates(build("bert"), 0.4).values()) == [0.2, 0.4]
    assert list(layer_rates(build("bart"), 0.4).values()) == [0.2, 0.4, 0.2, 0.4]


def test_rows_pass_by_and_the_mean_stays() -> None:
    """4000 rows: a quarter of them as they came in, the others moved 4/3 as far."""
    torch.manual_seed(0)
    before = torch.randn(4000, 2, 3)
    after = before + 1
    found = some_rows(before, after, 0.25) - before
    moved = found[found.ne(0)]
    torch.testing.assert_close(moved, torch.full_like(moved, 4 / 3))
    assert torch.equal(found.eq(0).all(dim=(1, 2)), found.eq(0).any(dim=2).any(dim=1))
    assert float(found.mean()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "t5", "bart", "vit"])
def test_evaluation_and_a_rate_of_nothing_change_nothing(family: str) -> None:
    model, inputs = build(family), batch(family)
    plain = model(**inputs).logits
    depth = attached(model, 0.9)
    assert torch.equal(model(**inputs).logits, plain)
    model.train()
    assert not torch.allclose(model(**inputs).logits, plain, atol=1e-3)
    depth.on_train_end(None, None, None)
    assert torch.equal(model.eval()(**inputs).logits, plain)
    assert not any(module._forward_hooks for module in model.modules())


def test_beginning_again_does_not_drop_twice() -> None:
    model = build("bert")
    depth = attached(model, 0.5)
    depth.on_train_begin(None, None, None)
    assert sum(len(module._forward_hooks) for module in model.modules()) == 2


@pytest.mark.parametrize("lora", [False, True])
def test_recomputed_layers_draw_the_same(lora: bool) -> None:
    """Gradients with and without checkpointing are equal to the bit."""
    gradients = []
    for recompute in (False, True):
        model = build("bert")
        model.requires_grad_(True)
        if lora:
            model = get_peft_model(model, LoraConfig(target_modules="all-linear"))
        if recompute:
            model.activation_checkpointing_enable()
        attached(model.train(), 0.8)
        torch.manual_seed(2)
        model(**batch("bert")).logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 2
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


def test_stages_are_refused() -> None:
    resnet = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1]))
    with pytest.raises(HftuneError, match=r"drop_path: ResNetModel has no plain stack"):
        StochasticDepth(resnet, 0.1)
    with pytest.raises(RunError, match=r"from \(2, 4, 8\) to \(2, 1, 16\)"):
        some_rows(torch.zeros(2, 4, 8), torch.zeros(2, 1, 16), 0.1)
