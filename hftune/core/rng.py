# SPDX-License-Identifier: Apache-2.0
"""Draws that can be repeated: by words alone, or once more from where the generators stood."""

import hashlib
from typing import Any

import torch
from torch import Tensor


def generator_of(device: torch.device | str, *words: int | str) -> torch.Generator:
    """Return a generator whose draws depend on the device and the words alone.

    A run that is resumed draws as one that was not, and all processes draw the same.

    Args:
        device: Where it draws.
        words: Such as the run's seed, what is drawn, and the step.
    """
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))


def normal_like(value: Tensor, *words: int | str) -> Tensor:
    """Return draws of N(0, 1) in the shape, type and place of a value, by the words alone."""
    generator = generator_of(value.device, *words)
    return torch.randn(value.shape, generator=generator, device=value.device, dtype=value.dtype)


def process_index() -> int:
    """Return the number of this process among those that train together."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if together else 0


class RngState:
    """State of torch's own generators: that of the CPU, and that of a device.

    Args:
        device: Where a model computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_cpu = torch.get_rng_state()
        self.on_device = None if device.type == "cpu" else self._module().get_rng_state(device)

    def restore(self) -> None:
        """Let the generators draw the same numbers again."""
        torch.set_rng_state(self.on_cpu)
        if self.on_device is not None:
            self._module().set_rng_state(self.on_device, self.device)

    def _module(self) -> Any:
        return torch.get_device_module(self.device)
