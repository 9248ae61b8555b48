# SPDX-License-Identifier: Apache-2.0
"""Dropped weights: how many, which, and none in evaluation or on reloading."""

from typing import Any

import pytest
import torch
from torch import nn

from hftune import HftuneError
from hftune.regularization.drop_connect import DropConnect, dropped
from tests.methods.tiny_models import batch, build


def trainable(family: str = "bert") -> Any:
    return build(family).requires_grad_(True)


def test_share_and_scale_of_what_is_left() -> None:
    """The identity as input shows the weights that counted; the bias is never dropped."""
    layer = nn.Linear(200, 300)
    nn.init.ones_(layer.weight)
    nn.init.constant_(layer.bias, 7)
    torch.manual_seed(0)
    seen = dropped(layer, 0.25, torch.eye(200)) - 7
    left = seen[seen.ne(0)]
    torch.testing.assert_close(left, torch.full_like(left, 4 / 3))
    assert float(seen.eq(0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert not torch.equal(seen, dropped(layer, 0.25, torch.eye(200)) - 7)  # drawn anew
    layer.eval()
    assert torch.equal(dropped(layer, 0.25, torch.eye(200)), layer(torch.eye(200)))
    layer.train().weight.requires_grad_(False)
    assert torch.equal(dropped(layer, 0.25, torch.eye(200)), layer(torch.eye(200)))


def test_only_what_the_pattern_names() -> None:
    model = trainable()
    head = DropConnect(model, 0.5, ["classifier"])
    assert head.layers == [model.classifier]
    everything = DropConnect(model, 0.5)
    assert len(everything.layers) == sum(type(m) is nn.Linear for m in model.modules()) > 10
    model.base_model.requires_grad_(False)
    assert DropConnect(model, 0.5).layers == [model.classifier]


def test_evaluation_saving_and_the_end() -> None:
    model, inputs = trainable(), batch("bert")
    plain, names = model(**inputs).logits, list(model.state_dict())
    drop = DropConnect(model, 0.5)
    drop.on_train_begin(None, None, None)
    drop.on_train_begin(None, None, None)  # with a smaller batch
    assert torch.equal(model.eval()(**inputs).logits, plain)
    assert list(model.state_dict()) == names
    assert not torch.allclose(model.train()(**inputs).logits, plain, atol=1e-3)
    drop.on_train_end(None, None, None)
    assert not any("forward" in vars(module) for module in model.modules())
    torch.testing.assert_close(model.eval()(**inputs).logits, plain)


def test_recomputed_layers_draw_the_same() -> None:
    gradients = []
    for recompute in (False, True):
        model = trainable()
        if recompute:
            model.activation_checkpointing_enable()
        DropConnect(model.train(), 0.5).on_train_begin(None, None, None)
        torch.manual_seed(2)
        model(**batch("bert")).logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        (["clasifier"], "'clasifier' fits nothing in BertForSequenceClassification"),
        (["LayerNorm"], "no linear layer of BertForSequenceClassification trains that"),
    ],
)
def test_what_is_refused(modules: list[str], says: str) -> None:
    with pytest.raises(HftuneError, match=says):
        DropConnect(trainable(), 0.1, modules)
    with pytest.raises(HftuneError, match="no linear layer"):
        DropConnect(build("bert"), 0.1)
