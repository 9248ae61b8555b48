# SPDX-License-Identifier: Apache-2.0
"""Carry out a whole run, from its plan to the finished run folder."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback

from hftune.core.console import warn
from hftune.core.errors import HftuneError
from hftune.runs.run import Run, locked_run_folder
from hftune.training.begin import agreed_folder, begin
from hftune.training.build import build_trainer
from hftune.training.callbacks.progress import JsonLog, ProgressReport, SampleLog
from hftune.training.checkpoints import latest_checkpoint
from hftune.training.finish import finish
from hftune.training.load_model import LoadedModel, load_model
from hftune.training.memory.memory_report import print_memory_report
from hftune.training.plan.plan import Plan
from hftune.training.run_fit import prepare_runner, run_fit
from hftune.training.speedups import speedups
from hftune.training.trainer import HftuneTrainer

FITTED_AGAIN = "run it again: its features are in the cache"


def run_training(
    plan: Plan,
    *,
    model: nn.Module | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    resume: bool = False,
) -> Run:
    """Train a plan and return its run folder.

    Args:
        plan: The run.
        model: The user's own model, which replaces the recipe's model and method.
        callbacks: Further Trainer callbacks.
        resume: Whether to continue the run of the recipe's folder.

    Raises:
        HftuneError: Something does not fit; nothing was written.
    """
    if (fitting := prepare_runner(plan)) is not None:
        own_loss = plan.objective.loss_choice is None
        name = plan.settings.recipe.method.name
        _check_without_trainer(name, model=model, loss=own_loss, callbacks=callbacks, resume=resume)
        return run_fit(plan, fitting)
    if model is None:
        plan = print_memory_report(plan)
    run = Run(agreed_folder(plan, resume))
    plan = plan.with_arguments(output_dir=str(run.checkpoints))
    with (
        locked_run_folder(run.path) if plan.settings.arguments.process_index == 0 else nullcontext()
    ):
        checkpoint = str(latest_checkpoint(run.checkpoints)) if resume else None
        loaded = load_model(plan) if model is None else LoadedModel(model)
        progress = ProgressReport()
        trainer = _build(plan, loaded, run.path, [progress, *callbacks])
        with speedups(plan, trainer):
            begin(plan, loaded, trainer, run.path, resume)
            trained = _train(trainer, progress, run.path, checkpoint)
            evaluated = _evaluate(plan, trainer)
        return finish(plan, trainer, run, loaded.base_fingerprint, trained, evaluated)


def _build(
    plan: Plan, loaded: LoadedModel, folder: Path, callbacks: Sequence[TrainerCallback]
) -> HftuneTrainer:
    """Build the Trainer, and let it write the logs of a run folder."""
    trainer = build_trainer(plan, loaded, [JsonLog(folder / "log.jsonl"), *callbacks])
    trainer.add_callback(SampleLog(folder / "samples.jsonl", lambda: trainer.samples))
    return trainer


def _train(
    trainer: HftuneTrainer, progress: ProgressReport, folder: Path, checkpoint: str | None
) -> dict[str, float]:
    """Run the steps; tell the user how to continue after an interruption."""
    try:
        metrics: dict[str, float] = trainer.train(resume_from_checkpoint=checkpoint).metrics
        return metrics
    except KeyboardInterrupt:
        progress.close()
        warn(f"interrupted; continue with: hftune train {folder} --resume")
        raise
    finally:
        progress.close()


def _evaluate(plan: Plan, trainer: HftuneTrainer) -> dict[str, object]:
    """Return the metrics of the kept model, with those of each class if there are classes."""
    validation, task = plan.splits.validation, plan.objective.task
    if validation is None:
        return {}
    output: Any = trainer.predict(validation.dataset, metric_key_prefix="eval")
    kept = output.predictions
    task.calibrate(kept)
    metrics = {f"eval_{name}": value for name, value in task.all_metrics(kept).items()}
    per_class = task.per_class(kept)
    return {**output.metrics, **metrics, **({"eval_per_class": per_class} if per_class else {})}


def _check_without_trainer(method: str, **given: object) -> None:
    """Raise if an argument is given that only a Trainer uses."""
    if names := [name for name, value in given.items() if value]:
        raise HftuneError(f"{', '.join(names)}: no Trainer runs for a {method}", hint=FITTED_AGAIN)
