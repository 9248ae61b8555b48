# SPDX-License-Identifier: Apache-2.0
"""How much better a model knows the rows it learned from than those it never saw."""

from typing import Any

import numpy as np
from datasets import Dataset
from transformers import Trainer, TrainerCallback

from hftune.tasks.task import Task


class GeneralizationGap(TrainerCallback):
    """Judges training rows at each evaluation, and tells how far apart the two losses are.

    The training loss in the log is no match for the validation loss: it is taken with dropout,
    augmentation, class weights and a penalty on top, and before each step. Here both come out of
    the same evaluation, by the task's plain loss.

    Args:
        trainer: Evaluates them.
        task: Measures the loss.
        rows: Preprocessed training rows; a sample as large as the validation rows is drawn.
        number: Rows of the validation part.
        seed: Of the draw, which is the same at each evaluation.
    """

    def __init__(self, trainer: Trainer, task: Task, rows: Dataset, number: int, seed: int) -> None:
        self.trainer = trainer
        self.task = task
        drawn = np.random.default_rng(seed).permutation(len(rows))[:number]
        self.rows = rows.select(np.sort(drawn))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the figures of training rows to those of an evaluation, and log them."""
        self.trainer.log(self._judge(kwargs["metrics"]))

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        """Add them to those of the model that is kept."""
        self._judge(metrics)

    def _judge(self, metrics: dict[str, float]) -> dict[str, float]:
        trainer = self.trainer
        compute_metrics, trainer.compute_metrics = trainer.compute_metrics, None
        try:
            loader = trainer.get_eval_dataloader(self.rows)
            judged: Any = trainer.evaluation_loop(loader, "Training rows")
        finally:
            trainer.compute_metrics = compute_metrics
        loss = self.task.metrics(judged.predictions)["loss"]
        figures = {"eval_train_loss": loss, "eval_gap": metrics["eval_loss"] - loss}
        metrics |= figures
        return figures
