# SPDX-License-Identifier: Apache-2.0
"""Keep the epoch of a sampler equal to the Trainer's, also in a resumed run."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SetEpoch(TrainerCallback):
    """Sets the epoch of the sampler when an epoch begins.

    The Trainer does so too, but does not reach a sampler that is wrapped for several processes, or
    for a run that is resumed in the middle of an epoch.
    """

    def __init__(self) -> None:
        self.sampler: Any = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch from the Trainer's state; a stream has no sampler."""
        if self.sampler is not None:
            self.sampler.set_epoch(int(state.epoch or 0))
