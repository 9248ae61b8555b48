# SPDX-License-Identifier: Apache-2.0
"""Work that one process does for all; the others wait for its answer or share its failure."""

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
    """Numbers of a run's processes, such as ``TrainingArguments`` or a ``RunContext`` gives."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    @property
    def process_index(self) -> int:
        """Number of this process; 0 is the main one."""


def on_main_process(processes: Processes, action: Callable[[], Answer]) -> Answer:
    """Run ``action`` in the main process and return its answer in every process.

    Args:
        processes: Number of processes, and the number of this one.
        action: Function whose answer can be pickled.

    Raises:
        HftuneError: ``action`` raised it. Every process raises it then.

    Example:
        >>> from types import SimpleNamespace
        >>> on_main_process(SimpleNamespace(world_size=1, process_index=0), lambda: 2 + 2)
        4
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
    """Return a result that every process finds; if one does not, the main process makes it.

    Machines may share a cache or have their own, and all processes must take the same branch.

    Args:
        processes: Number of processes, and the number of this one.
        find: Function that looks for the result.
        make: Function that makes it, so that ``find`` finds it.
        says: Message for the case that it is found at once.

    Returns:
        The result, or None in every process if one of them still does not find it.

    Example:
        >>> from types import SimpleNamespace
        >>> one, made = SimpleNamespace(world_size=1, process_index=0), {}
        >>> found_or_computed(one, lambda: made.get("sum"), lambda: made.update(sum=4), "found")
        4
    """
    found = find()
    if on_all_processes(processes, found is not None):
        say(says)
        return found
    on_main_process(processes, make)
    found = find()
    return found if on_all_processes(processes, found is not None) else None


def on_all_processes(processes: Processes, holds: bool) -> bool:
    """Tell whether a condition holds in every process."""
    if processes.world_size == 1:
        return holds
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    held = torch.tensor(holds, dtype=torch.int32)
    dist.all_reduce(held, dist.ReduceOp.MIN, group=group)
    dist.destroy_process_group(group)
    return bool(held)


def peak_memory() -> dict[str, float]:
    """Return the peak memory of this process, and that of its GPU, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result: dict[str, float] = {
        "peak_memory_mib": round((peak if sys.platform == "darwin" else peak * 1024) / 2**20)
    }
    if torch.cuda.is_available():
        result["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return result
