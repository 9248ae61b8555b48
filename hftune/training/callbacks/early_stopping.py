# SPDX-License-Identifier: Apache-2.0
"""End a run early when its metric has not improved for several evaluations."""

from types import SimpleNamespace
from typing import Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

from hftune.core.console import number_of, say


class EarlyStopping(EarlyStoppingCallback):
    """``transformers.EarlyStoppingCallback`` that keeps its count in a resumed run.

    The count comes from the Trainer's log history, which every checkpoint holds. A run that was
    stopped early, and then interrupted before its model was saved, does not train again.

    Args:
        early_stopping_patience: So many evaluations in a row without improvement end the run.
        early_stopping_threshold: Smaller differences are no improvement.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the evaluations before a resumed run was interrupted."""
        super().on_train_begin(args, state, control, **kwargs)  # type: ignore[no-untyped-call]
        self.early_stopping_patience_counter = 0
        name = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        best, better = None, max if args.greater_is_better else min
        for value in (line[name] for line in state.log_history if name in line):
            past = SimpleNamespace(best_metric=best)
            self.check_metric_value(args, past, control, value)  # type: ignore[no-untyped-call]
            best = value if best is None else better(best, value)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop a resumed run that had stopped early already."""
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Print the reason if the run ended early."""
        count = self.early_stopping_patience_counter
        if count >= self.early_stopping_patience and state.global_step < state.max_steps:
            evaluations = number_of(count, "evaluation", "evaluations")
            say(
                f"stopped early, after {state.global_step} of {state.max_steps} optimizer steps: "
                f"{args.metric_for_best_model} had no gain for {evaluations}; the best, "
                f"{state.best_metric:.4f}, is of step {state.best_global_step}"
            )
