# SPDX-License-Identifier: Apache-2.0
"""What is said of gradients that vanish or explode on their way down, in stacks that do so."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from torch import nn

import hftune
from hftune import Recipe
from hftune.report import gradient_flow
from hftune.report.gradient_flow import draw_gradient_flow, layer_norms, verdict

Log = list[dict[str, Any]]


def log_of(stack: Sequence[nn.Module], steps: int = 4) -> Log:
    """Return what a log would have of a stack of linear layers, each with an activation or none."""
    linear = [layer for layer in stack if isinstance(layer, nn.Linear)]
    log: Log = []
    for step in range(steps):
        torch.manual_seed(step)
        nn.Sequential(*stack)(torch.randn(32, 16)).square().mean().backward()
        norms = {f"grad_norm/layer_{n}": _norm(layer) for n, layer in enumerate(linear)}
        log.append({"step": step + 1, "loss": 1.0, "grad_norm/head": 1e9, **norms})
        for layer in linear:
            layer.zero_grad()
    return log


def _norm(layer: nn.Linear) -> float:
    assert layer.weight.grad is not None
    return layer.weight.grad.norm().item()


def stack_of(gain: float, *, sigmoid: bool) -> list[nn.Module]:
    """Return eight layers of orthogonal weights."""
    layers: list[nn.Module] = []
    for _ in range(8):
        linear = nn.Linear(16, 16)
        nn.init.orthogonal_(linear.weight, gain)
        layers += [linear, nn.Sigmoid()] if sigmoid else [linear]
    return layers


@pytest.mark.parametrize(
    ("gain", "sigmoid", "vanish"),
    [
        (0.2, True, True),
        (1.0, False, False),
        (3.0, False, False),  # the lower a layer, the larger its gradient and the smaller its input
    ],
)
def test_planted_stacks(gain: float, sigmoid: bool, vanish: bool) -> None:
    """A sigmoid's slope is a quarter at most: eight of them leave next to nothing."""
    wrong = verdict(layer_norms(log_of(stack_of(gain, sigmoid=sigmoid))))
    assert (wrong is not None) == vanish
    assert wrong is None or wrong.startswith("gradients vanish: the norm of layer 0")


def test_a_stack_whose_gradients_grow() -> None:
    """Normalized outputs and large weights: each layer multiplies the gradient, and no input."""
    stack: list[nn.Module] = []
    for _ in range(8):
        linear = nn.Linear(16, 16)
        nn.init.orthogonal_(linear.weight, 6.0)
        stack += [linear, nn.Hardtanh(-100, 100), Shrunk()]
    wrong = verdict(layer_norms(log_of(stack)))
    assert wrong is not None
    assert wrong.startswith("gradients explode: the norm of layer 0")
    assert "7 layers above it" in wrong


class Shrunk(nn.Module):
    """Makes values small forward and passes gradients through as they are."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return a sixth, with the gradient of the whole."""
        return values + (values / 6 - values).detach()


@pytest.mark.parametrize(
    "norms", [{}, {0: [1.0]}, {0: [0.0], 1: [0.0]}, {0: [1e-9], 1: [float("nan")]}]
)
def test_nothing_is_said_without_grounds(norms: dict[int, list[float]], tmp_path: Path) -> None:
    """One layer, no gradient at all, or no number."""
    assert verdict(norms) is None


@pytest.mark.draws
def test_a_run_draws_it_and_says_what_is_wrong(
    make_recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is wrong with a tiny encoder; a smaller tolerance finds its layers apart."""
    asked = {"log_grad_norms": "layers", "max_steps": 4}
    run = hftune.train(make_recipe(training=asked))
    assert imread(run.path / "plots" / "gradient_flow.png").std() > 0
    assert "warning: gradients" not in capsys.readouterr().err
    monkeypatch.setattr(gradient_flow, "TOLERATED", 1.000001)
    hftune.train(make_recipe(training={**asked, "output_dir": str(run.path) + "-2"}))
    assert "warning: gradients" in capsys.readouterr().err


def test_layers_stand_in_order_and_join_late(tmp_path: Path) -> None:
    """Of ten layers the last is the highest; one that was frozen at first has fewer points."""
    log: Log = [{"step": n, **{f"grad_norm/layer_{k}": 1.0 for k in range(10 if n > 2 else 5)}}
                for n in range(1, 7)]  # fmt: skip
    norms = layer_norms(log)
    assert list(norms) == list(range(10))
    assert len(norms[9]) == 4
    assert len(draw_gradient_flow(norms, tmp_path)) == 2
