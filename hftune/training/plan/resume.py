# SPDX-License-Identifier: Apache-2.0
"""Check that a run can be resumed with the present launcher and the present base weights."""

import json
from pathlib import Path

from hftune.core.errors import HftuneError
from hftune.training.distributed.launcher import Launch

#: Name of a distribution in ``environment.json`` -> name of the launcher's sharding.
SHARDED = {"FSDP2": "fsdp", "DEEPSPEED": "deepspeed"}


def check_resumed(folder: Path, launch: Launch) -> None:
    """Raise if a run would be resumed with another sharding, or fp8 would change.

    Raises:
        HftuneError: The checkpoints of the run have another kind.
    """
    recorded = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    then = recorded.get("distribution", {}).get("type", "NO")
    if SHARDED.get(then) != launch.sharding:
        config = {"FSDP2": "fsdp2", "DEEPSPEED": "deepspeed_zero2"}.get(then, "multi_gpu")
        raise HftuneError(
            f"{folder}: the checkpoints are of a run with {then}, and this launch is "
            f"{'not sharded' if launch.sharding is None else launch.sharding}",
            hint=f"hftune train {folder} --resume"
            + (f" --accelerate {config}" if then in SHARDED else ""),
        )
    fp8 = recorded["mixed_precision"] == "fp8"
    if fp8 != (launch.mixed_precision == "fp8"):
        raise HftuneError(
            f"{folder}: the run {'was' if fp8 else 'was not'} launched with fp8",
            hint=f"{'add' if fp8 else 'leave out'} --mixed-precision fp8",
        )


def check_resumed_base(folder: Path, path: str, base_fingerprint: dict[str, str] | None) -> None:
    """Raise if an adapter would be resumed on other base weights than before.

    Args:
        folder: The run folder.
        path: The base model's name in the recipe.
        base_fingerprint: Fingerprint of its present weights.

    Raises:
        HftuneError: The weights of ``model.path`` have changed.
    """
    recorded = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    then = recorded.get("base_fingerprint")
    if then is not None and then != base_fingerprint:
        raise HftuneError(
            f"{folder} began with other weights than {path} has now",
            hint=f"put back the {path} of that time, or train again into another folder",
        )
