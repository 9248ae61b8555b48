# SPDX-License-Identifier: Apache-2.0
"""What one process does for all: the others wait for its answer, or share its failure."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from transformers import TrainingArguments

from hftune.core.errors import HftuneError

Answer = TypeVar("Answer")

#: Beyond any upload; the default of the process group would end a run that is only slow.
PATIENCE = timedelta(days=1)


def once(arguments: TrainingArguments, action: Callable[[], Answer]) -> Answer:
    """Run ``action`` in the main process and return its answer in every process.

    Args:
        arguments: Know the processes.
        action: Its answer must pickle.

    Raises:
        HftuneError: ``action`` raised it; every process raises it then.
    """
    if arguments.world_size == 1:
        return action()
    outcome: list[Any] = [None, None]
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    if arguments.process_index == 0:
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
