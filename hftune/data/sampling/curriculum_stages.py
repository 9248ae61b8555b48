# SPDX-License-Identifier: Apache-2.0
"""A curriculum whose stages end where the metric of the evaluations stands still."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from hftune.core.console import say, warn

if TYPE_CHECKING:
    from hftune.data.sampling.curriculum import Curriculum


class CurriculumStages(TrainerCallback):
    """Tells a curriculum, out of the Trainer's own history, at which steps its stages were over.

    The history is in every checkpoint, so a resumed run needs nothing else.

    Args:
        curriculum: Draws the rows; has a ``patience``.
    """

    def __init__(self, curriculum: "Curriculum") -> None:
        self.curriculum = curriculum

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up the history of a resumed run."""
        self._read(args, state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the newest evaluation, which is in the history already."""
        before = self.curriculum.stage(state.global_step)
        self._read(args, state)
        stage = self.curriculum.stage(state.global_step)
        if stage > before:
            say(f"curriculum: stage {stage} of {self.curriculum.stages} from the next epoch on")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say so if the hardest rows never had their turn."""
        began = [end for end in self.curriculum.ends if end < state.global_step]
        stage = min(self.curriculum.stages, 1 + len(began))
        if stage < self.curriculum.stages:
            warn(
                f"the run was over in stage {stage} of {self.curriculum.stages}, so its hardest "
                "rows never trained: give more epochs, less data.curriculum.patience, or fewer "
                "stages"
            )

    def _read(self, args: Any, state: Any) -> None:
        assert self.curriculum.patience is not None
        name = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        values = [(line["step"], line[name]) for line in state.log_history if name in line]
        self.curriculum.ends = flat_stretches(
            values, self.curriculum.patience, greater_is_better=bool(args.greater_is_better)
        )


def flat_stretches(
    values: Iterable[tuple[int, float]], patience: int, *, greater_is_better: bool
) -> list[int]:
    """Return the steps at which a metric had not been better for ``patience`` evaluations.

    After each of them the count begins anew; the best value stays.

    Args:
        values: Step and metric of each evaluation, in order.
        patience: Evaluations in a row, each no better than the best before.
        greater_is_better: Which way is better.
    """
    best, flat, ends = -math.inf, 0, []
    for step, value in values:
        score = value if greater_is_better else -value
        flat = 0 if score > best else flat + 1
        best = max(best, score)
        if flat == patience:
            ends.append(step)
            flat = 0
    return ends
