# SPDX-License-Identifier: Apache-2.0
"""Some numbers of a base model, by which an adapter knows it again.

A few weights are chosen by their names, and of each its shape and a few of its numbers, spread
evenly, are kept. That is read in milliseconds, whatever the size of the model.

What is promised:

- The same weights pass, also where either side holds them as float32, bfloat16 or float16.
- On a quantized base, what is not quantized is compared: embeddings, norms and biases.
- Weights of other training do not pass, in the same type to the last bit. Two models that differ
  in a few numbers alone, as by pruning or by an edit of single facts, may be taken for one.
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

#: How many weights are kept, beside the largest one, and how many numbers of each.
MATRICES, VECTORS, NUMBERS = 24, 8, 4
#: Half as fine as the smallest step of float16.
TINY = 2.0**-25

NamedWeights = Iterable[tuple[str, Tensor]]


def fingerprint(weights: NamedWeights) -> dict[str, str] | None:
    """Return name -> shape and numbers of a few weights; None where there are no numbers.

    Args:
        weights: Names and weights, as ``named_parameters`` gives them.
    """
    known = {name: weight for name, weight in weights if _has_numbers(weight)}
    order = sorted(known, key=lambda name: hashlib.sha256(name.encode()).digest())
    # The largest are the embeddings of most models, which stay floats in a quantized one.
    largest = sorted(order, key=lambda name: -known[name].numel())[:1]
    matrices = [name for name in order if known[name].dim() > 1][:MATRICES]
    vectors = [name for name in order if known[name].dim() <= 1][:VECTORS]
    return {name: _entry(known[name]) for name in [*largest, *matrices, *vectors]} or None


def differing(expected: Mapping[str, str] | None, weights: NamedWeights) -> list[str]:
    """Return the names of the weights that are not what they were, or are not there.

    Args:
        expected: What :func:`fingerprint` returned; None passes.
        weights: Of the model that stands for the base now.
    """
    known = dict(weights)
    then: dict[str, Tensor] = {}
    now: dict[str, Tensor] = {}
    wrong = []
    for name, entry in (expected or {}).items():
        shape, _, numbers = entry.partition(" ")
        weight = known.get(name)
        if weight is None or (_has_numbers(weight) and _shape(weight) != shape):
            wrong.append(name)
        elif _has_numbers(weight):
            packed = bytes.fromhex(numbers)
            then[name] = torch.tensor(struct.unpack(f">{NUMBERS}f", packed))
            now[name] = _numbers(weight)
    tolerance = _tolerance(then.values(), now.values())
    wrong += [name for name in then if not _equal(then[name], now[name], tolerance)]
    return wrong


def _has_numbers(weight: Tensor) -> bool:
    """Whether a weight is here, whole, and neither quantized nor packed."""
    plain = type(weight) in (Tensor, nn.Parameter) and weight.device.type != "meta"
    return plain and weight.is_floating_point() and weight.numel() > 0


def _entry(weight: Tensor) -> str:
    packed = struct.pack(f">{NUMBERS}f", *_numbers(weight).tolist())
    return f"{_shape(weight)} {packed.hex()}"


def _shape(weight: Tensor) -> str:
    return "x".join(map(str, weight.shape))


def _numbers(weight: Tensor) -> Tensor:
    """Some numbers of a weight, float32 on the CPU, shape ``(NUMBERS,)``."""
    step = weight.numel() / NUMBERS
    places = torch.tensor([int((index + 0.5) * step) for index in range(NUMBERS)])
    if weight.dim() == 0:
        return weight.detach().float().cpu().expand(NUMBERS)
    at = torch.unravel_index(places.to(weight.device), weight.shape)  # no copy of a transposed one
    return weight.detach()[at].float().cpu()


def _tolerance(then: Iterable[Tensor], now: Iterable[Tensor]) -> float:
    """How far numbers may be apart, as a share: nothing if both were rounded alike."""
    steps = {_step(list(numbers)) for numbers in (then, now)}
    return 0.0 if len(steps) == 1 else max(steps)


def _step(numbers: list[Tensor]) -> float:
    """The precision that numbers have, wherever they are stored."""
    whole = torch.cat(numbers) if numbers else torch.zeros(0)
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(whole.to(dtype).float(), whole):
            return torch.finfo(dtype).eps
    return 0.0


def _equal(then: Tensor, now: Tensor, tolerance: float) -> bool:
    room = tolerance * torch.maximum(then.abs(), now.abs()) + (TINY if tolerance else 0.0)
    return bool(((then - now).abs() <= room).all())
