# SPDX-License-Identifier: Apache-2.0
"""Each scheme against ``torch.nn.init`` under the same seed, and against its formula."""

import inspect
import math
from typing import Any, get_args

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hftune.core.registry import named
from hftune.initialization import SCHEMES, Scheme
from hftune.initialization.lsuv import scale_to_unit_variance
from hftune.initialization.schemes import draw, set_prior
from hftune.initialization.section import Drawing

OUT, IN = 300, 200
SEED = 7

#: Scheme and options -> the call in torch.nn.init, and the variance by its formula.
CASES: list[tuple[dict[str, Any], str, dict[str, Any], float]] = [
    ({"name": "xavier_uniform"}, "xavier_uniform_", {}, 2 / (IN + OUT)),
    ({"name": "xavier_normal", "gain": 3.0}, "xavier_normal_", {"gain": 3}, 9 * 2 / (IN + OUT)),
    ({"name": "kaiming_uniform"}, "kaiming_uniform_", {}, 2 / IN),
    ({"name": "kaiming_uniform", "a": 0.2}, "kaiming_uniform_", {"a": 0.2}, 2 / (1.04 * IN)),
    ({"name": "kaiming_normal", "mode": "fan_out"}, "kaiming_normal_", {"mode": "fan_out"},
     2 / OUT),
    ({"name": "kaiming_normal", "nonlinearity": "tanh"}, "kaiming_normal_",
     {"nonlinearity": "tanh"}, 25 / 9 / IN),
    ({"name": "lecun_normal"}, "normal_", {"std": IN**-0.5}, 1 / IN),
    ({"name": "lecun_uniform"}, "uniform_", {"a": -math.sqrt(3 / IN), "b": math.sqrt(3 / IN)},
     1 / IN),
    ({"name": "orthogonal", "gain": 2.0}, "orthogonal_", {"gain": 2}, 4 / OUT),
    ({"name": "normal"}, "normal_", {"std": 0.02}, 4e-4),
    ({"name": "normal", "mean": 1.0, "std": 0.5}, "normal_", {"mean": 1, "std": 0.5}, 0.25),
    ({"name": "trunc_normal"}, "trunc_normal_", {"std": 0.02, "a": -0.04, "b": 0.04},
     0.7737413 * 4e-4),  # 1 - 2 * 2 * density(2) / (2 * distribution(2) - 1)
    ({"name": "uniform"}, "uniform_", {"a": -0.05, "b": 0.05}, 0.05**2 / 3),
    ({"name": "uniform", "a": 0.0, "b": 1.0}, "uniform_", {"a": 0, "b": 1}, 1 / 12),
    ({"name": "constant", "val": 0.1}, "constant_", {"val": 0.1}, 0.0),
    ({"name": "zeros"}, "zeros_", {}, 0.0),
    ({"name": "ones"}, "ones_", {}, 0.0),
]  # fmt: skip


def drawn(holder: nn.Module, **given: Any) -> torch.Tensor:
    torch.manual_seed(SEED)
    draw(holder.weight, Drawing(**given), holder)
    return holder.weight.detach()


@pytest.mark.parametrize(("given", "function", "options", "variance"), CASES)
def test_a_scheme_is_that_of_torch(
    given: dict[str, Any], function: str, options: dict[str, Any], variance: float
) -> None:
    weight = drawn(nn.Linear(IN, OUT), **given)
    torch.manual_seed(SEED)
    expected = getattr(nn.init, function)(torch.empty(OUT, IN), **options)
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-7)
    assert float(weight.var()) == pytest.approx(variance, rel=0.03, abs=1e-12)


def test_the_table_and_its_names_are_one() -> None:
    assert tuple(SCHEMES) == get_args(Scheme)
    without_case = {"lsuv", "prior"}
    assert {given["name"] for given, *_ in CASES} == SCHEMES.keys() - without_case


@pytest.mark.parametrize("name", SCHEMES)
def test_the_facts_of_a_row_are_those_of_its_function(name: Scheme) -> None:
    """It takes its options; equal weights are equal, and only a bias is drawn without a target."""
    row = SCHEMES[name]
    assert (row.target is None) == (row.draws == "vectors")
    assert {*row.required, *row.settings} <= {*row.options}
    assert not row.scales_on_batch or row.draws == "matrices"
    assert row.bounds == ("b" in row.options)
    if row.target is None:
        return
    taken = inspect.signature(named(row.target)).parameters
    assert {*row.options} <= {*taken}
    asked = {option for option, one in taken.items() if one.default is inspect.Parameter.empty}
    assert asked - {"tensor", *row.settings} == {*row.required}
    weight = drawn(nn.Linear(IN, OUT), name=name, **dict.fromkeys(row.required, 0.5))
    if row.equal_weights:
        assert weight.std() == 0
    if row.draws == "any":
        given = {**row.settings, **dict.fromkeys(row.required, 1.0)}
        assert named(row.target)(torch.empty(3), **given).shape == (3,)
    else:
        with pytest.raises((ValueError, IndexError)):
            named(row.target)(torch.empty(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonal_columns(dtype: torch.dtype) -> None:
    weight = drawn(nn.Linear(IN, OUT, dtype=dtype), name="orthogonal").float()
    error = (weight.T @ weight - torch.eye(IN)).abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 1e-2)


def test_fan_in_of_a_weight_that_is_kept_the_other_way_round() -> None:
    """GPT-2's ``Conv1D`` keeps (in, out), which torch would take for (out, in)."""
    weight = drawn(Conv1D(OUT, IN), name="lecun_normal")
    torch.testing.assert_close(weight, drawn(nn.Linear(IN, OUT), name="lecun_normal").T)


def test_a_stack_with_relu_keeps_its_scale() -> None:
    x = torch.randn(256, 128, generator=torch.Generator().manual_seed(0))
    start = float(x.square().mean())
    torch.manual_seed(SEED)
    for _ in range(20):
        layer = nn.Linear(128, 128, bias=False)
        draw(layer.weight, Drawing(name="kaiming_normal"), layer)
        x = layer(x).relu().detach()
    # E[x²] after a ReLU of unit-variance input is half of it, which fan_in's factor 2 makes good.
    assert 0.5 < float(x.square().mean()) / start < 2


def test_equal_units_stay_equal() -> None:
    """Why zeros are nothing for two layers in a row."""
    network = nn.Sequential(nn.Linear(4, 2), nn.Sigmoid(), nn.Linear(2, 3))
    for layer in (network[0], network[2]):
        draw(layer.weight, Drawing(name="zeros"), layer)
        nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    assert torch.equal(network[0].weight[0], network[0].weight[1])


def test_prior_gives_each_class_its_share() -> None:
    head = nn.Linear(5, 3)
    nn.init.zeros_(head.weight)
    set_prior(head.bias, [30, 20, 10])
    shares = head(torch.randn(2, 5)).softmax(-1)
    torch.testing.assert_close(shares, torch.tensor([[3.0, 2, 1]] * 2) / 6)
    set_prior(head.bias, [3, 0, 1])  # a class without rows counts as one
    torch.testing.assert_close(head.bias.detach().exp(), torch.tensor([3.0, 1, 1]) / 5)


class Stack(nn.Module):
    """Runs its layers in another order than they are listed in."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.Linear(16, 8), nn.Linear(32, 16)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.drop(self.first(x).tanh()))
        return out


def test_lsuv_gives_each_layer_an_output_of_variance_one() -> None:
    torch.manual_seed(SEED)
    stack, batch = Stack().train(), {"x": 5 * torch.randn(64, 32)}
    for layer in (stack.last, stack.first):
        draw(layer.weight, Drawing(name="lsuv"), layer)
    directions = nn.functional.normalize(stack.first.weight.detach(), dim=1)
    scale_to_unit_variance(stack, ["last", "first"], batch)
    assert stack.training
    stack.eval()
    with torch.no_grad():
        first = stack.first(batch["x"])
        outputs = first, stack.last(first.tanh())
    for output in outputs:
        assert 0.9 < float(output.var()) < 1.1
    # Only lengths changed.
    torch.testing.assert_close(nn.functional.normalize(stack.first.weight, dim=1), directions)
