# SPDX-License-Identifier: Apache-2.0
"""Read the launcher's settings: sharding, processes and precision.

Accelerate passes them to the processes as environment variables.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hftune.recipe.recipe import Recipe


@dataclass(frozen=True)
class Launch:
    """The launcher's settings.

    Attributes:
        settings: The environment variables of this process.
        gpus: Number of accelerators of this machine for the run.

    Example:
        >>> launch = Launch({"ACCELERATE_USE_FSDP": "true", "LOCAL_WORLD_SIZE": "2"}, gpus=2)
        >>> launch.sharding, launch.processes
        ('fsdp', 2)
    """

    settings: Mapping[str, str]
    gpus: int

    @property
    def sharding(self) -> str | None:
        """``fsdp`` or ``deepspeed``; None when every process holds the whole model."""
        kinds = [kind for kind in ("fsdp", "deepspeed") if self.has(f"ACCELERATE_USE_{kind}")]
        return kinds[0] if kinds else None

    @property
    def mixed_precision(self) -> str | None:
        """``no``, ``bf16``, ``fp16`` or ``fp8``; None without a launcher."""
        return self.settings.get("ACCELERATE_MIXED_PRECISION")

    @property
    def use_cpu(self) -> bool:
        """Whether the launcher keeps the run on the CPU."""
        return self.has("ACCELERATE_USE_CPU")

    @property
    def processes(self) -> int:
        """Number of processes on this machine."""
        return int(self.settings.get("LOCAL_WORLD_SIZE", "1"))

    def has(self, switch: str) -> bool:
        """Tell whether a switch of the environment is on."""
        return self.settings.get(switch.upper(), "false").lower() == "true"

    @classmethod
    def of_this_process(cls) -> "Launch":
        """Read the environment of this process, and count its accelerators."""
        return cls(dict(os.environ), torch.accelerator.device_count())


def has_bf16() -> bool:
    """Tell whether the GPU supports bfloat16 without emulation."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def precision(recipe: Recipe, launch: Launch) -> str:
    """Return the mixed precision of recipe and launcher; the recipe overrides the launcher."""
    given = recipe.training
    for name in ("bf16", "fp16"):
        if given.get(name):
            return name
    if launch.mixed_precision == "fp8" or not {"bf16", "fp16"} & given.keys():
        return launch.mixed_precision or "no"
    return "no"
