# SPDX-License-Identifier: Apache-2.0
"""A custom callback: training ends after a given time, at any step.

    python recipes/custom/own_callback.py [MODEL] [SECONDS]
    accelerate launch --config_file accelerate_configs/multi_cpu.yaml recipes/custom/own_callback.py

A callback is called at every event of a run and may change the run through ``control``. It gets
the model, the optimizer and the schedule in ``kwargs``, and the progress of the run in ``state``.
"""

import sys
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import hftune


class TimeBudget(TrainerCallback):
    """End training after a given time.

    The current epoch ends then, too, so it is evaluated and saved like any other.

    Args:
        seconds: Time limit of training; the current step is completed.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.began = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the start time."""
        self.began = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop training if the time is over."""
        if time.monotonic() - self.began > self.seconds:
            control.should_training_stop = True


def main(model: str = "demo:minilm", seconds: str = "30") -> None:
    """Train and report."""
    recipe = hftune.Recipe(
        task="text-classification",
        model=model,
        data={"path": "demo:docstrings", "max_train_samples": 400, "max_length": 32},
        method={"name": "lora", "r": 8},
        training={"learning_rate": 1e-3, "num_train_epochs": 2},
    )
    run = hftune.train(recipe, callbacks=[TimeBudget(float(seconds))])
    print(f"macro F1 {run.metrics['eval_f1_macro']:.3f}, model in {run.model_path}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
