# SPDX-License-Identifier: Apache-2.0
"""``hftune train``: fine-tune a model as a recipe says, and save it in a run folder."""

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
    """Fine-tune a model as the recipe says, and save it in a run folder.

    Args:
        recipe: The recipe.
        train_dataset: Rows in place of ``data.path``.
        eval_dataset: Rows in place of ``data.validation``.
        model: Your own model, in place of ``model.path``. The method of the recipe is not applied
            to it. Tokenizer and config still come from ``model.path``.
        loss: Your own loss; see :class:`hftune.Loss`.
        metrics: Metrics of the ``evaluate`` library in place of ``evaluation.metrics``, as objects,
            or by name or path. The script of a metric runs on this machine.
        callbacks: Further Trainer callbacks.
        resume: Continue the run whose folder contains the recipe, from its newest whole checkpoint.

    Returns:
        The run: its paths, metrics, model and tokenizer.

    Raises:
        HftuneError: The recipe or the data are wrong; nothing has been written then.
        RunError: ``training.push_to_hub`` failed after training; the run is complete.
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
    """Push the finished run; an error names the command to try again."""
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
