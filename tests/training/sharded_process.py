# SPDX-License-Identifier: Apache-2.0
"""One of several CPU processes that train sharded: ``torchrun sharded_process.py JOBS.json``.

Accelerate shards on accelerators alone and falls back to DDP on a CPU. Its FSDP2 code runs there
all the same, over gloo: what is changed here is only the question whether it may.
"""

import json
import sys
from pathlib import Path
from typing import Any

import transformers
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

import hftune
from hftune.training.distributed import launch_rules

plain_init = AcceleratorState.__init__


def sharding_init(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    """Do for CPU processes what Accelerate does for those with a GPU."""
    plain_init(self, *args, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


class AllSharded(TrainerCallback):
    """Fails when a process holds a parameter whole, which would prove nothing."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at every parameter."""
        whole = [n for n, p in kwargs["model"].named_parameters() if not isinstance(p, DTensor)]
        assert not whole, f"not sharded: {whole}"


class StopAt(TrainerCallback):
    """Ends a run as a crash would, after a step that a checkpoint holds."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fail at the step after."""
        if state.global_step == self.step:
            raise InterruptedError


def run(job: dict[str, Any]) -> None:
    """Train one recipe; with ``stop``, in two parts."""
    recipe = hftune.Recipe(**job["recipe"])
    checks = [AllSharded()]
    if "stop" in job:
        try:
            hftune.train(recipe, callbacks=[*checks, StopAt(job["stop"])])
        except InterruptedError:
            hftune.train(recipe, callbacks=checks, resume=True)
            return
        raise AssertionError("the run was not interrupted")
    hftune.train(recipe, callbacks=checks)


if __name__ == "__main__":
    AcceleratorState.__init__ = sharding_init
    launch_rules.RULES = tuple(rule for rule in launch_rules.RULES if rule.key != "--accelerate")
    transformers.logging.set_verbosity_error()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job)
