# SPDX-License-Identifier: Apache-2.0
"""The epoch of a sampler follows the Trainer's own count, also in a resumed run."""

from typing import Any

from transformers import TrainerCallback


class SetEpoch(TrainerCallback):
    """Tells the sampler which epoch begins.

    The Trainer does so too, but does not reach it behind the wrappers of several processes and of
    a run that was resumed in the middle of an epoch.
    """

    def __init__(self) -> None:
        self.sampler: Any = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the epoch out of the Trainer's state; a stream has none."""
        if self.sampler is not None:
            self.sampler.set_epoch(int(state.epoch or 0))
