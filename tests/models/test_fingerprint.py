# SPDX-License-Identifier: Apache-2.0
"""A base is known again after every cast that a user does, and no other one is taken for it."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

from hftune.models.fingerprint import MATRICES, NUMBERS, VECTORS, differing, fingerprint

TYPES = (torch.float32, torch.bfloat16, torch.float16)


class Net(nn.Module):
    """A table, layers, a transposed weight and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(40))
        self.turned = nn.Parameter(torch.randn(8, 6).T)
        self.scale = nn.Parameter(torch.randn(()))


@pytest.fixture
def net() -> Net:
    return Net()


def differences(one: nn.Module, other: nn.Module) -> list[str]:
    return differing(fingerprint(one.named_parameters()), other.named_parameters())


@pytest.mark.parametrize("now", TYPES)
@pytest.mark.parametrize("then", TYPES)
def test_the_same_weights_in_every_type(then: Any, now: Any, net: Net) -> None:
    """Each cast from the checkpoint, and the one from the other."""
    first = copy.deepcopy(net).to(then)
    assert differences(first, copy.deepcopy(net).to(now)) == []
    if torch.promote_types(then, now) == then:  # a copy of a copy loses no more
        assert differences(first, copy.deepcopy(first).to(now)) == []
        assert differences(copy.deepcopy(first).to(now), copy.deepcopy(first).to(now).float()) == []


def test_what_is_kept(net: Net) -> None:
    """Few numbers whatever the size; read from a transposed weight and a scalar, too."""
    kept = fingerprint(net.named_parameters())
    assert kept is not None
    assert len(kept) <= MATRICES + VECTORS + 1
    assert "table.weight" in kept  # the largest one
    assert json.loads(json.dumps(kept)) == kept
    shape, numbers = kept["table.weight"].split()
    assert shape == "50x8"
    flat = net.table.weight.detach().flatten()
    places = [int((index + 0.5) * flat.numel() / NUMBERS) for index in range(NUMBERS)]
    assert bytes.fromhex(numbers) == flat[places].numpy().astype(">f4").tobytes()
    alone = fingerprint([("turned", net.turned), ("scale", net.scale)])
    assert alone is not None
    assert alone["scale"].strip().endswith(net.scale.detach().numpy().astype(">f4").tobytes().hex())
    assert differing(alone, [("turned", net.turned), ("scale", net.scale)]) == []


def test_the_last_bit_of_the_same_type_counts(net: Net) -> None:
    other = copy.deepcopy(net)
    with torch.no_grad():
        for weight in other.parameters():
            weight.copy_(torch.nextafter(weight, torch.full_like(weight, torch.inf)))
    kept = fingerprint(net.named_parameters())
    assert kept is not None
    assert set(differences(net, other)) == set(kept)


@pytest.mark.parametrize("dtype", TYPES[1:])
def test_another_training_shows_in_half_precision(dtype: torch.dtype, net: Net) -> None:
    """A change of two hundredths of the weights' size."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.02)
    assert len(differences(net, other.to(dtype))) > MATRICES


def test_one_changed_layer_of_many_shows(net: Net) -> None:
    """Which layers are looked at follows from their names: neither the first nor every second."""
    shown = []
    for number in range(40):
        other = copy.deepcopy(net)
        nn.init.normal_(other.layers[number].weight)
        shown.append(bool(differences(net, other)))
    assert 20 <= sum(shown) <= MATRICES
    assert len(set(shown[::2])) == len(set(shown[1::2])) == 2


def test_what_is_gone_or_of_another_shape(net: Net) -> None:
    kept = fingerprint(net.named_parameters())
    assert differing(kept, [("scale", net.scale)])
    other = copy.deepcopy(net)
    other.table = nn.Embedding(51, 8)
    assert differences(net, other) == ["table.weight"]


def test_what_has_no_numbers_is_not_compared(net: Net) -> None:
    """Quantized weights, and those that are not loaded."""
    packed = dict(net.named_parameters())
    packed["layers.3.weight"] = torch.zeros(32, 1, dtype=torch.uint8)
    assert differing(fingerprint(net.named_parameters()), packed.items()) == []
    assert fingerprint(net.to("meta").named_parameters()) is None
    assert differing(None, packed.items()) == []


def test_no_pass_over_all_weights() -> None:
    """A weight that is one number repeated takes no memory, and would take minutes to read."""
    huge = torch.ones(1).expand(2**20, 2**20)
    assert fingerprint([("huge", huge)]) == {"huge": f"{2**20}x{2**20} " + "3f800000" * NUMBERS}
