# SPDX-License-Identifier: Apache-2.0
"""Recognize the base model of an adapter by a few of its numbers.

The fingerprint holds the shape and a few evenly spaced numbers of some weights, chosen by name. It
takes milliseconds to read, whatever the size of the model.

Promises:

- The same weights pass, also if one side has them as float32 and the other as bfloat16 or float16.
- On a quantized base, the weights that are not quantized are compared: embeddings, norms, biases.
- Weights of another training do not pass; in the same dtype every bit counts. Two models that
  differ only in a few numbers, as after pruning or editing single facts, may pass as the same.
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

#: Number of matrices and vectors in a fingerprint besides the largest weight, and numbers of each.
MATRICES, VECTORS, NUMBERS = 24, 8, 4
#: Half of the smallest step of float16.
TINY = 2.0**-25

NamedWeights = Iterable[tuple[str, Tensor]]


def fingerprint(weights: NamedWeights) -> dict[str, str] | None:
    """Return name -> shape and numbers of a few weights; None if no weight has numbers.

    Args:
        weights: Names and weights, as ``named_parameters`` yields them.

    Example:
        >>> fingerprint([("weight", torch.tensor([1.0, 2.0]))])
        {'weight': '2 3f8000003f8000004000000040000000'}
    """
    known = {name: weight for name, weight in weights if _has_numbers(weight)}
    order = sorted(known, key=lambda name: hashlib.sha256(name.encode()).digest())
    # The largest weight is usually the embeddings, which are not quantized in a quantized model.
    largest = sorted(order, key=lambda name: -known[name].numel())[:1]
    matrices = [name for name in order if known[name].dim() > 1][:MATRICES]
    vectors = [name for name in order if known[name].dim() <= 1][:VECTORS]
    return {name: _entry(known[name]) for name in [*largest, *matrices, *vectors]} or None


def differing(expected: Mapping[str, str] | None, weights: NamedWeights) -> list[str]:
    """Return the names of weights that have changed or are missing.

    Args:
        expected: A fingerprint; None never differs.
        weights: Weights of the present base model.

    Example:
        >>> known = fingerprint([("weight", torch.tensor([1.0, 2.0]))])
        >>> differing(known, [("weight", torch.tensor([1.0, 2.5]))])
        ['weight']
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
    """Tell whether a weight is loaded, whole, and neither quantized nor packed."""
    plain = type(weight) in (Tensor, nn.Parameter) and weight.device.type != "meta"
    return plain and weight.is_floating_point() and weight.numel() > 0


def _entry(weight: Tensor) -> str:
    packed = struct.pack(f">{NUMBERS}f", *_numbers(weight).tolist())
    return f"{_shape(weight)} {packed.hex()}"


def _shape(weight: Tensor) -> str:
    return "x".join(map(str, weight.shape))


def _numbers(weight: Tensor) -> Tensor:
    """Return some numbers of a weight, float32 on the CPU, shape ``(NUMBERS,)``."""
    step = weight.numel() / NUMBERS
    places = torch.tensor([int((index + 0.5) * step) for index in range(NUMBERS)])
    if weight.dim() == 0:
        return weight.detach().float().cpu().expand(NUMBERS)
    at = torch.unravel_index(
        places.to(weight.device), weight.shape
    )  # makes no copy of a transposed weight
    return weight.detach()[at].float().cpu()


def _tolerance(then: Iterable[Tensor], now: Iterable[Tensor]) -> float:
    """Return the allowed relative difference: 0 if both sides were rounded to the same dtype."""
    steps = {_step(list(numbers)) for numbers in (then, now)}
    return 0.0 if len(steps) == 1 else max(steps)


def _step(numbers: list[Tensor]) -> float:
    """Return the precision of the numbers themselves, whatever dtype stores them."""
    whole = torch.cat(numbers) if numbers else torch.zeros(0)
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(whole.to(dtype).float(), whole):
            return torch.finfo(dtype).eps
    return 0.0


def _equal(then: Tensor, now: Tensor, tolerance: float) -> bool:
    room = tolerance * torch.maximum(then.abs(), now.abs()) + (TINY if tolerance else 0.0)
    return bool(((then - now).abs() <= room).all())
