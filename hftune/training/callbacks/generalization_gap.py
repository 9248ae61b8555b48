# SPDX-License-Identifier: Apache-2.0
"""Log the generalization gap: validation loss minus the loss on training rows."""

from typing import Any

import numpy as np
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hftune.tasks.task import Task


class GeneralizationGap(TrainerCallback):
    """Evaluates training rows at each evaluation, and logs the difference of the two losses.

    The training loss in the log cannot be compared with the validation loss: it includes dropout,
    augmentation, class weights and penalties, and is computed before each step. Here both losses
    are the task's plain loss in the same kind of evaluation.

    Args:
        trainer: Evaluates the rows.
        task: Computes the loss.
        rows: Preprocessed training rows, from which a sample is drawn once.
        number: Size of the sample: the number of validation rows.
        seed: Seed of the draw.
    """

    def __init__(self, trainer: Trainer, task: Task, rows: Dataset, number: int, seed: int) -> None:
        self.trainer = trainer
        self.task = task
        drawn = np.random.default_rng(seed).permutation(len(rows))[:number]
        self.rows = rows.select(np.sort(drawn))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the metrics of training rows to those of an evaluation, and log them."""
        self.trainer.log(self._judge(kwargs["metrics"]))

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Add the metrics of training rows to those of the kept model."""
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
