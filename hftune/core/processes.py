# SPDX-License-Identifier: Apache-2.0
"""What one process does for all: the others wait for its answer, or share its failure."""

import resource
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from hftune.core.console import say
from hftune.core.errors import HftuneError

Answer = TypeVar("Answer")
Found = TypeVar("Found")

#: Beyond any upload; the default of the process group would end a run that is only slow.
PATIENCE = timedelta(days=1)


class Processes(Protocol):
    """Whoever knows the processes of a run: ``TrainingArguments``, or a ``RunContext``."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    @property
    def process_index(self) -> int:
        """Of this process; 0 is the main one."""


def on_main_process(processes: Processes, action: Callable[[], Answer]) -> Answer:
    """Run ``action`` in the main process and return its answer in every process.

    Args:
        processes: Number of processes, and which this is.
        action: Its answer must pickle.

    Raises:
        HftuneError: ``action`` raised it; every process raises it then.
    """
    if processes.world_size == 1:
        return action()
    outcome: list[Any] = [None, None]
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    if processes.process_index == 0:
        try:
            outcome[0] = action()
        except HftuneError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, group=group)
    dist.destroy_process_group(group)
    if outcome[1] is not None:
        raise outcome[1]
    answer: Answer = outcome[0]
    return answer


def found_or_computed(
    processes: Processes,
    find: Callable[[], Found | None],
    make: Callable[[], object],
    says: str,
) -> Found | None:
    """Return what every process finds; where one does not, the main process makes it for all.

    Machines may share a cache or have their own, and all processes have to go the same way.

    Args:
        processes: Number of processes, and which this is.
        find: Looks for it.
        make: Makes what is found then.
        says: Printed where it is found at once.

    Returns:
        None in every process, if one does not find it even then.
    """
    found = find()
    if on_all_processes(processes, found is not None):
        say(says)
        return found
    on_main_process(processes, make)
    found = find()
    return found if on_all_processes(processes, found is not None) else None


def on_all_processes(processes: Processes, holds: bool) -> bool:
    """Tell whether something holds in every process."""
    if processes.world_size == 1:
        return holds
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    held = torch.tensor(holds, dtype=torch.int32)
    dist.all_reduce(held, dist.ReduceOp.MIN, group=group)
    dist.destroy_process_group(group)
    return bool(held)


def peak_memory() -> dict[str, float]:
    """Return the largest resident size of this process so far, and on its GPU, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result: dict[str, float] = {
        "peak_memory_mib": round((peak if sys.platform == "darwin" else peak * 1024) / 2**20)
    }
    if torch.cuda.is_available():
        result["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return result
