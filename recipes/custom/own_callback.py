# SPDX-License-Identifier: Apache-2.0
"""A callback of one's own: training ends when its time is up, wherever it is then.

    python recipes/custom/own_callback.py [MODEL] [SECONDS]
    accelerate launch --config_file accelerate_configs/multi_cpu.yaml recipes/custom/own_callback.py

A callback is told of every event of a run and may change its course through ``control``. It sees
the model, the optimizer and the schedule in ``kwargs``, and ``state`` tells how far the run is.
"""

import sys
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import hftune


class TimeBudget(TrainerCallback):
    """Ends training after a while.

    The epoch that is under way ends there too, so it is evaluated and saved like any other.

    Args:
        seconds: How long training may take; it ends with the step that is under way then.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.began = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the clock."""
        self.began = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look again."""
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
