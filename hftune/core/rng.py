# SPDX-License-Identifier: Apache-2.0
"""Random draws that can be repeated: from a seed made of words, or from a saved state."""

import hashlib
from typing import Any

import torch
from torch import Tensor


def generator_of(device: torch.device | str, *words: int | str) -> torch.Generator:
    """Return a generator that is seeded by words.

    So a resumed run draws the same numbers as an uninterrupted one, and so do all processes.

    Args:
        device: Device of the generator.
        words: Words for the seed, such as the run's seed, a name for the draw, and the step.

    Example:
        >>> a, b = generator_of("cpu", 42, "noise", 7), generator_of("cpu", 42, "noise", 7)
        >>> torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))
        True
    """
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))


def normal_like(value: Tensor, *words: int | str) -> Tensor:
    """Return draws of N(0, 1) with the shape, dtype and device of a tensor, seeded by words.

    Example:
        >>> value = torch.zeros(2, 3)
        >>> torch.equal(normal_like(value, 42, "noise"), normal_like(value, 42, "noise"))
        True
        >>> torch.equal(normal_like(value, 42, "noise"), normal_like(value, 43, "noise"))
        False
    """
    generator = generator_of(value.device, *words)
    return torch.randn(value.shape, generator=generator, device=value.device, dtype=value.dtype)


def process_index() -> int:
    """Return the rank of this process; 0 if it trains by itself.

    Example:
        >>> process_index()
        0
    """
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if together else 0


class RngState:
    """State of torch's default generators, on the CPU and on one device.

    Args:
        device: Device of the model.

    Example:
        >>> state = RngState(torch.device("cpu"))
        >>> first = torch.rand(3)
        >>> state.restore()
        >>> torch.equal(torch.rand(3), first)
        True
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_cpu = torch.get_rng_state()
        self.on_device = None if device.type == "cpu" else self._module().get_rng_state(device)

    def restore(self) -> None:
        """Restore the state, so that the generators draw the same numbers again."""
        torch.set_rng_state(self.on_cpu)
        if self.on_device is not None:
            self._module().set_rng_state(self.on_device, self.device)

    def _module(self) -> Any:
        return torch.get_device_module(self.device)
