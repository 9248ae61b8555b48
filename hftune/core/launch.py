# SPDX-License-Identifier: Apache-2.0
"""The command line of ``accelerate launch``, and the mistakes that show before it starts."""

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hftune.core.errors import HftuneError
from hftune.core.shipped import accelerate_config

PRECISIONS = ("no", "bf16", "fp16", "fp8")


def launch_command(
    config: str,
    arguments: list[str],
    *,
    mixed_precision: str | None = None,
    num_processes: int | None = None,
) -> list[str]:
    """Return the command that runs ``hftune train`` through Accelerate.

    Args:
        config: A shipped config by name, or a file of one's own.
        arguments: Of ``hftune train``.
        mixed_precision: In place of the config's.
        num_processes: In place of the config's, over all machines.

    Raises:
        HftuneError: The config cannot be launched so.
    """
    path = accelerate_config(config)
    settings = _read(path)
    kind = str(settings.get("distributed_type", "NO"))
    if kind == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise HftuneError("deepspeed is not installed", hint="pip install deepspeed")
    precision = mixed_precision or settings.get("mixed_precision")
    if precision == "fp8" and find_spec("torchao") is None:
        raise HftuneError("fp8 needs torchao, which is not installed", hint="pip install torchao")
    if int(settings.get("num_machines", 1)) > 1 and not settings.get("main_process_ip"):
        raise HftuneError(
            f"{path.name}: several machines need the address of the first one",
            hint="on each machine: accelerate launch --config_file "
            f"{path} --main_process_ip ADDRESS --machine_rank RANK -m hftune train "
            + " ".join(arguments),
        )
    if num_processes is not None and num_processes > 1 and kind == "NO":
        raise HftuneError(
            f"--num-processes: {path.name} runs one process", hint="--accelerate multi_gpu"
        )
    if num_processes == 1 and kind == "MULTI_GPU":
        raise HftuneError(
            f"--num-processes: {path.name} is for two or more", hint="--accelerate single_gpu"
        )
    program = shutil.which("accelerate", path=os.path.dirname(sys.executable)) or "accelerate"
    options = ["--config_file", str(path)]
    if mixed_precision is not None:
        options += ["--mixed_precision", mixed_precision]
    if num_processes is not None:
        options += ["--num_processes", str(num_processes)]
    return [program, "launch", *options, "-m", "hftune", "train", *arguments]


def precision_overrides(mixed_precision: str | None) -> list[str]:
    """Return the overrides that let a recipe say the same; it has no field for fp8."""
    if mixed_precision in (None, "fp8"):
        return []
    return [f"training.{name}={str(name == mixed_precision).lower()}" for name in ("bf16", "fp16")]


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise HftuneError(f"{path}: not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(settings, dict):
        raise HftuneError(
            f"{path}: not a config of Accelerate", hint="accelerate config --config_file FILE"
        )
    return settings
