# SPDX-License-Identifier: Apache-2.0
"""Noise on weights and gradients: as large as asked, taken off to the bit, drawn by step alone."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hftune import HftuneError
from hftune.regularization.noise import GradientNoise, WeightNoise


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Linear(100, 100), "b": nn.Linear(100, 3)})


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def test_weights_are_moved_and_come_back_to_the_bit() -> None:
    net = model()
    net["b"].requires_grad_(False)
    before, noise = weights(net), WeightNoise(net, 0.1, seed=3)
    with noise.in_place(step=0):
        during = weights(net)
    apart = (during["a.weight"] - before["a.weight"]).flatten()
    assert float(apart.std()) == pytest.approx(0.1, rel=0.03)
    assert float(apart.mean()) == pytest.approx(0, abs=0.004)
    assert torch.equal(during["b.weight"], before["b.weight"])  # it does not train
    for name, value in weights(net).items():
        assert torch.equal(value, before[name])


def test_a_failure_leaves_the_weights_as_they_were() -> None:
    net = model()
    before = weights(net)
    with pytest.raises(KeyboardInterrupt), WeightNoise(net, 0.1, seed=3).in_place(0):
        raise KeyboardInterrupt
    assert all(torch.equal(value, before[name]) for name, value in weights(net).items())


def test_draws_follow_seed_step_and_name_alone() -> None:
    """So a resumed run, another process, or a weight that is frozen beside it change nothing."""

    def drawn(seed: int, step: int, freeze: bool = False) -> torch.Tensor:
        net = model()
        net["a"].requires_grad_(not freeze)
        torch.manual_seed(step + 100)
        with WeightNoise(net, 0.1, seed=seed).in_place(step):
            return net["b"].weight.detach().clone()

    assert torch.equal(drawn(1, 5), drawn(1, 5, freeze=True))
    assert not torch.equal(drawn(1, 5), drawn(1, 6))
    assert not torch.equal(drawn(1, 5), drawn(2, 5))


def test_only_what_the_pattern_names() -> None:
    net = model()
    before = weights(net)
    with WeightNoise(net, 0.1, seed=3, params=r"b\..*").in_place(0):
        during = weights(net)
    assert {n for n in before if not torch.equal(before[n], during[n])} == {"b.weight", "b.bias"}
    with pytest.raises(HftuneError, match=r"weight_noise.params: 'c' fits nothing"):
        WeightNoise(net, 0.1, seed=3, params=["c"])


@pytest.mark.parametrize("step", [0, 99])
def test_gradient_noise_fades(step: int) -> None:
    net = model()
    net["a"].weight.grad = torch.ones(100, 100)
    noise = GradientNoise(net, 0.3, seed=1)
    noise.on_pre_optimizer_step(None, SimpleNamespace(global_step=step), None)
    added = net["a"].weight.grad - 1
    assert float(added.std()) == pytest.approx(math.sqrt(0.3 / (1 + step) ** 0.55), rel=0.03)
    assert net["b"].weight.grad is None
    net["a"].weight.grad = torch.ones(100, 100)
    torch.manual_seed(9)
    GradientNoise(net, 0.3, seed=1).on_pre_optimizer_step(
        None, SimpleNamespace(global_step=step), None
    )
    assert torch.equal(net["a"].weight.grad - 1, added)
