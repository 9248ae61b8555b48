# SPDX-License-Identifier: Apache-2.0
"""Fused LoRA layers against PEFT's own: outputs and all gradients, and who goes PEFT's way."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from hftune.speed.fused_lora import _Fused, fused_lora

TARGETS = {"r": 3, "target_modules": ["one", "other"]}


class Two(nn.Module):
    """Two linear layers, one without a bias, that see the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 5), nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.one(x)) * self.other(x)


def adapted(**options: Any) -> PeftModel:
    """Return the two with LoRA, in float64, and no weight at zero."""
    torch.manual_seed(0)
    model = get_peft_model(Two(), LoraConfig(**{**TARGETS, **options}))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight)
    return model.double()


def answers(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the output, and the gradients of the input and of all that trains."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    output = model(x)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return [output, *torch.autograd.grad(output.square().sum(), [x, *trained])]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grow by one with each fused call."""
    calls: list[None] = []
    ordinary = _Fused.apply
    monkeypatch.setattr(_Fused, "apply", lambda *a: (calls.append(None), ordinary(*a))[1])
    return calls


@pytest.mark.parametrize("trains_base", [False, True])
@pytest.mark.parametrize("options", [{}, {"lora_alpha": 24}, {"lora_dropout": 0.5}])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 7, 6)])
def test_it_is_what_peft_computes(
    options: dict[str, Any], shape: tuple[int, ...], trains_base: bool, counted: list[None]
) -> None:
    model = adapted(**options)
    if trains_base:
        model.requires_grad_(True)
    x = torch.randn(*shape, dtype=torch.float64)
    expected = answers(model, x)
    with fused_lora(model) as layers:
        got = answers(model, x)
    assert layers == len(counted) == 2
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_is_no_view_is_taken_too(counted: list[None]) -> None:
    model, x = adapted(), torch.randn(6, 7, 2, dtype=torch.float64).transpose(0, 2)
    expected = answers(model, x)
    with fused_lora(model):
        got = answers(model, x)
    torch.testing.assert_close(got, expected)
    assert counted


def test_an_adapter_that_is_off_or_merged_goes_its_own_way(counted: list[None]) -> None:
    model, x = adapted(), torch.randn(4, 6, dtype=torch.float64)
    expected = model(x)
    with model.disable_adapter():
        plain = model(x)
    with fused_lora(model):
        with model.disable_adapter():
            torch.testing.assert_close(model(x), plain)
        model.merge_adapter()
        torch.testing.assert_close(model(x), expected)
        model.unmerge_adapter()
        assert not counted
        torch.testing.assert_close(model(x), expected)
    assert len(counted) == 2
    model(x)
    assert len(counted) == 2  # nothing is left behind


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"lora_bias": True, "target_modules": ["one"]}]
)
def test_variants_go_their_own_way(options: dict[str, Any], counted: list[None]) -> None:
    model, x = adapted(**options), torch.randn(4, 6, dtype=torch.float64)
    expected = answers(model, x)
    with fused_lora(model):
        torch.testing.assert_close(answers(model, x), expected)
    assert not counted


def test_autocast_and_several_adapters_go_their_own_way(counted: list[None]) -> None:
    model = adapted().float()
    x = torch.randn(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        with fused_lora(model):
            torch.testing.assert_close(model(x), expected)
    model.add_adapter("second", LoraConfig(**TARGETS))
    model.base_model.set_adapter(["default", "second"])
    expected = model(x)
    with fused_lora(model):
        torch.testing.assert_close(model(x), expected)
    assert not counted


def test_steps_are_the_same() -> None:
    """Three steps of AdamW end at the same weights."""
    ends = []
    for wanted in (False, True):
        model, x = adapted(), torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 6)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        with fused_lora(model, wanted):
            for _ in range(3):
                optimizer.zero_grad()
                model(x).square().sum().backward()
                optimizer.step()
        ends.append(parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)
