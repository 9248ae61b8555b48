# SPDX-License-Identifier: Apache-2.0
"""What the launcher asked for: sharding, processes and precision.

Accelerate hands its decisions to the processes as environment variables.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hftune.recipe.recipe import Recipe


@dataclass(frozen=True)
class Launch:
    """What the launcher asked for.

    Attributes:
        settings: The environment of this process.
        gpus: Accelerators of this machine that the run may use.
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
        """Whether the config keeps the run off the GPUs."""
        return self.has("ACCELERATE_USE_CPU")

    @property
    def processes(self) -> int:
        """Processes of this machine."""
        return int(self.settings.get("LOCAL_WORLD_SIZE", "1"))

    def has(self, switch: str) -> bool:
        """Tell whether a switch is on."""
        return self.settings.get(switch.upper(), "false").lower() == "true"

    @classmethod
    def of_this_process(cls) -> "Launch":
        """Read the environment of this process, and count its accelerators."""
        return cls(dict(os.environ), torch.accelerator.device_count())


def has_bf16() -> bool:
    """Tell whether the GPU multiplies in bfloat16, and does not only emulate it."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def precision(recipe: Recipe, launch: Launch) -> str:
    """Return the precision that recipe and launcher ask for together; the recipe's word counts."""
    given = recipe.training
    for name in ("bf16", "fp16"):
        if given.get(name):
            return name
    if launch.mixed_precision == "fp8" or not {"bf16", "fp16"} & given.keys():
        return launch.mixed_precision or "no"
    return "no"
