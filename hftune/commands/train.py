# SPDX-License-Identifier: Apache-2.0
"""``hftune train``: a recipe becomes a fine-tuned model in a run folder."""

from collections.abc import Sequence

from datasets import Dataset
from torch import nn
from transformers import TrainerCallback

from hftune.commands.push import push, push_command
from hftune.core.errors import HftuneError, RunError
from hftune.core.processes import on_main_process
from hftune.evaluation.external import Metric
from hftune.hub.push_request import PushOrder, check_push
from hftune.losses.loss import Loss
from hftune.recipe.recipe import Recipe
from hftune.runs.run import Run
from hftune.training.plan.prepare import prepare
from hftune.training.plan.remarks import print_rows
from hftune.training.run_training import run_training


def train(
    recipe: Recipe,
    *,
    train_dataset: Dataset | None = None,
    eval_dataset: Dataset | None = None,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    metrics: Sequence[Metric] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    resume: bool = False,
) -> Run:
    """Fine-tune as the recipe says and leave a run folder behind.

    Args:
        recipe: What to do.
        train_dataset: Rows in place of ``data.path``.
        eval_dataset: Rows in place of ``data.validation``.
        model: A model of one's own in place of ``model.path``, trained as it is: the method of the
            recipe is not applied. Tokenizer and config still come from ``model.path``.
        loss: A loss of one's own; see :class:`hftune.Loss`.
        metrics: Metrics of the ``evaluate`` library, as objects, or by name or path, whose scripts
            run here; in place of ``evaluation.metrics``.
        callbacks: More Trainer callbacks.
        resume: Continue the run in whose folder the recipe lies, from its newest whole checkpoint.

    Returns:
        The run: its paths, metrics, model and tokenizer.

    Raises:
        HftuneError: Something does not fit; nothing has been written then.
        RunError: ``training.push_to_hub`` failed after training; the run is whole.
    """
    rows = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
    plan = prepare(recipe, **rows, loss=loss, metrics=metrics, own_model=model)
    print_rows(plan)
    order = check_push(plan.settings.recipe, plan.settings.arguments)
    run = run_training(plan, model=model, callbacks=callbacks, resume=resume)
    if order is not None:
        on_main_process(plan.settings.arguments, lambda: _push(run, order))
    return run


def _push(run: Run, order: PushOrder) -> str | None:
    """Push the run that is finished now; a failure tells how to try again."""
    options = order.options()
    again = push_command(run.path, **options)
    try:
        return push(run.path, **options)
    except HftuneError as error:
        hint = error.hint or ""
        hint = hint if again in hint else f"{hint + '; then: ' if hint else ''}{again}"
        raise RunError(
            f"the model is finished and lies in {run.model_path}, but it was not pushed: "
            f"{error.message}",
            hint=hint,
        ) from error
