# SPDX-License-Identifier: Apache-2.0
"""A run that ends where the metric of the evaluations has stood still for long enough."""

from types import SimpleNamespace
from typing import Any

from transformers import EarlyStoppingCallback

from hftune.core.console import number_of, say


class EarlyStopping(EarlyStoppingCallback):
    """``transformers.EarlyStoppingCallback``, which counts on in a resumed run.

    The count is taken out of the Trainer's own history, which is in every checkpoint. A run that
    was stopped, and then interrupted before its model was saved, does not train again.

    Args:
        early_stopping_patience: Evaluations in a row without a gain that end the run.
        early_stopping_threshold: A gain is more than this.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count what a resumed run has behind it."""
        super().on_train_begin(args, state, control, **kwargs)  # type: ignore[no-untyped-call]
        self.early_stopping_patience_counter = 0
        name = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        best, better = None, max if args.greater_is_better else min
        for value in (line[name] for line in state.log_history if name in line):
            past = SimpleNamespace(best_metric=best)
            self.check_metric_value(args, past, control, value)  # type: ignore[no-untyped-call]
            best = value if best is None else better(best, value)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let a resumed run that was over be over."""
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say so if the run ended early."""
        count = self.early_stopping_patience_counter
        if count >= self.early_stopping_patience and state.global_step < state.max_steps:
            evaluations = number_of(count, "evaluation", "evaluations")
            say(
                f"stopped early, after {state.global_step} of {state.max_steps} optimizer steps: "
                f"{args.metric_for_best_model} had no gain for {evaluations}; the best, "
                f"{state.best_metric:.4f}, is of step {state.best_global_step}"
            )
