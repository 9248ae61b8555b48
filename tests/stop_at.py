# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C at a step of one's choice."""

from typing import Any

from transformers import TrainerCallback


class StopAt(TrainerCallback):
    """Raise as Ctrl-C does, in the middle of an epoch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt
