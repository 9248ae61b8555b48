# SPDX-License-Identifier: Apache-2.0
"""``accelerate launch``: its options, the mistakes that show before it starts, and how it ends."""

import logging
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hftune.core.errors import HftuneError, RunError, first_line
from hftune.core.shipped import accelerate_config

PRECISIONS = ("no", "bf16", "fp16", "fp8")
ON_GPUS = ("NO", "MULTI_GPU", "FSDP", "DEEPSPEED")


def launch_options(
    config: str,
    arguments: list[str],
    *,
    mixed_precision: str | None = None,
    num_processes: int | None = None,
) -> list[str]:
    """Return the arguments of ``accelerate launch`` that run ``hftune train``.

    Args:
        config: Name of a shipped config, or path of a config file.
        arguments: Arguments of ``hftune train``.
        mixed_precision: Replaces the precision of the config.
        num_processes: Replaces the number of processes of the config, over all machines.

    Raises:
        HftuneError: The config cannot be launched with these options.
    """
    path = accelerate_config(config)
    settings = _read(path)
    precision = mixed_precision or settings.get("mixed_precision")
    _check_precision(path, settings, precision)
    _check_processes(path, settings, num_processes, arguments)
    options = ["--config_file", str(path)]
    if mixed_precision is not None:
        options += ["--mixed_precision", mixed_precision]
    if num_processes is not None:
        options += ["--num_processes", str(num_processes)]
    return [*options, "-m", "hftune", "train", *arguments]


def _check_precision(path: Path, settings: dict[str, object], precision: str | None) -> None:
    """Raise :class:`HftuneError` if a package or a GPU is missing."""
    kind = str(settings.get("distributed_type", "NO"))
    if kind == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise HftuneError("deepspeed is not installed", hint="pip install deepspeed")
    if precision in ("fp16", "fp8") and settings.get("use_cpu"):
        raise HftuneError(
            f"--mixed-precision: {precision} needs a GPU, and {path.name} runs on a CPU",
            hint="no or bf16",
        )
    if precision == "fp8" and find_spec("torchao") is None:
        raise HftuneError("fp8 needs torchao, which is not installed", hint="pip install torchao")


def _check_processes(
    path: Path, settings: dict[str, Any], number: int | None, arguments: list[str]
) -> None:
    """Raise :class:`HftuneError` if the config does not suit this machine or ``number``."""
    kind, on_cpu = str(settings.get("distributed_type", "NO")), bool(settings.get("use_cpu"))
    if int(settings.get("num_machines", 1)) > 1 and not settings.get("main_process_ip"):
        raise HftuneError(
            f"{path.name}: several machines need the address of the first one",
            hint="on each machine: accelerate launch --config_file "
            f"{path} --main_process_ip ADDRESS --machine_rank RANK -m hftune train "
            + " ".join(arguments),
        )
    if number is not None and number > 1 and kind == "NO":
        raise HftuneError(
            f"--num-processes: {path.name} runs one process",
            hint=f"--accelerate {'multi_cpu' if on_cpu else 'multi_gpu'}",
        )
    if number == 1 and kind == "MULTI_GPU":
        raise HftuneError(
            f"--num-processes: {path.name} is for two or more",
            hint=f"--accelerate {'cpu' if on_cpu else 'single_gpu'}",
        )
    if settings.get("use_cpu") is False and kind in ON_GPUS and _gpus() == 0:
        raise HftuneError(
            f"--accelerate: {path.name} is for GPUs, and this machine has none",
            hint="--accelerate cpu, or multi_cpu",
        )


def launch(options: list[str]) -> int:
    """Start the processes, wait for them, and return the code to exit with.

    A process prints its own errors; Accelerate's command would add a traceback of the launcher.

    Args:
        options: Result of :func:`launch_options`.

    Raises:
        RunError: A process was killed.
    """
    from accelerate.commands import launch as launcher
    from torch.distributed.elastic.agent.server import api as agent
    from torch.distributed.elastic.multiprocessing import api as workers
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for module in (agent, workers):  # each sets its level when it is imported
        logging.getLogger(module.__name__).setLevel(logging.CRITICAL)
    # The launcher warns about its own defaults and names options that hftune does not have.
    logging.getLogger(launcher.__name__).setLevel(logging.ERROR)
    try:
        launcher.launch_command(launcher.launch_command_parser().parse_args(options))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
    except subprocess.CalledProcessError as error:
        rank, code = 0, error.returncode
    except workers.SignalException as error:
        return 128 + error.sigval
    else:
        return 0
    if code < 0:
        name = signal.Signals(-code).name
        raise RunError(
            f"process {rank} was ended by {name}",
            hint="the memory of the machine may have run out" if name == "SIGKILL" else None,
        )
    return code


def precision_overrides(mixed_precision: str | None) -> list[str]:
    """Return the recipe overrides that set the same precision; none for fp8, which has no field.

    Example:
        >>> precision_overrides("fp16")
        ['training.bf16=false', 'training.fp16=true']
    """
    if mixed_precision in (None, "fp8"):
        return []
    return [f"training.{name}={str(name == mixed_precision).lower()}" for name in ("bf16", "fp16")]


def _gpus() -> int:
    import torch

    return torch.accelerator.device_count()


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise HftuneError(f"{path}: not YAML: {first_line(error)}") from error
    if not isinstance(settings, dict):
        raise HftuneError(
            f"{path}: not a config of Accelerate", hint="accelerate config --config_file FILE"
        )
    return settings
