# SPDX-License-Identifier: Apache-2.0
"""Build the Trainer of a plan and its model; no other module makes one."""

from collections.abc import Iterable, Sequence

from datasets import Dataset
from torch import nn
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from hftune.distillation.teaching import Teaching, training_rows, with_teacher
from hftune.losses.loss import Loss
from hftune.regularization.weight_averaging import Averaging
from hftune.training.callbacks.early_stopping import EarlyStopping
from hftune.training.callbacks.generalization_gap import GeneralizationGap
from hftune.training.callbacks.no_input_gradients import NoInputGradients
from hftune.training.distributed.sharding import name_layers
from hftune.training.load_model import LoadedModel
from hftune.training.plan.plan import Plan
from hftune.training.trainer import HftuneTrainer


def build_trainer(
    plan: Plan, loaded: LoadedModel, callbacks: Sequence[TrainerCallback] = ()
) -> HftuneTrainer:
    """Make the Trainer of a plan.

    Args:
        plan: The run.
        loaded: Its model.
        callbacks: Further callbacks, called after the plan's own.
    """
    settings, splits, objective = plan.settings, plan.splits, plan.objective
    model, processor, rows = loaded.model, plan.pretrained.processor, rows_of(plan)
    averaging = settings.optimization.build_averaging(model, plan.training_steps.total)
    loss = with_teacher(objective.loss, teaching_of(plan), rows, model, averaging)
    trainer = HftuneTrainer(
        model=model,
        args=settings.arguments,
        task=objective.task,
        loss=loss,
        method=objective.method,
        optimization=settings.optimization,
        averaging=averaging,
        row_sampler=splits.row_sampler if splits.token_batches is None else splits.token_batches,
        penalty=settings.optimization.build_penalty(model, loaded.new_modules),
        weight_noise=settings.regularization.build_weight_noise(model),
        train_dataset=rows if splits.stream is None else splits.stream,
        eval_dataset=None if splits.validation is None else splits.validation.dataset,
        data_collator=objective.task.collator(processor, model),
        processing_class=processor,
        callbacks=[*_callbacks(plan, model, loss, averaging), *callbacks],
    )
    if settings.recipe.evaluation.gap and splits.validation is not None:
        trainer.add_callback(_generalization_gap(plan, trainer, splits.validation.num_rows))
    name_layers(trainer.accelerator, model)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def rows_of(plan: Plan) -> Dataset:
    """Return the training rows, including those without labels."""
    splits = plan.splits
    unlabelled = None if splits.unlabelled is None else splits.unlabelled.dataset
    return training_rows(plan.objective.loss, splits.train.dataset, unlabelled)


def teaching_of(plan: Plan) -> Teaching:
    """Return the facts that teachers need."""
    return Teaching(
        task=plan.objective.task,
        teachers=plan.objective.teachers,
        student=plan.pretrained.config,
        context=plan.context(),
        streamed=plan.splits.stream is not None,
    )


def _callbacks(
    plan: Plan, model: nn.Module, loss: Loss, averaging: Averaging | None
) -> Iterable[TrainerCallback]:
    """Yield the callbacks of a plan in the order of their calls."""
    settings = plan.settings
    yield from plan.objective.method.callbacks(model)
    if averaging is not None:
        yield averaging
    if (sharpness := settings.regularization.build_sharpness(model)) is not None:
        yield sharpness  # its gradient is clipped like any other
    yield from settings.optimization.callbacks()
    yield from settings.regularization.callbacks(model)
    yield NoInputGradients()
    if plan.splits.row_sampler is not None:
        yield from plan.splits.row_sampler.callbacks()
    yield from loss.callbacks(plan.training_steps.total)
    yield from _early_stopping(plan)


def _generalization_gap(plan: Plan, trainer: HftuneTrainer, rows: int) -> GeneralizationGap:
    """Return the callback that evaluates as many training rows as there are validation rows."""
    train, seed = plan.splits.train.dataset, plan.settings.arguments.seed
    return GeneralizationGap(trainer, plan.objective.task, train, rows, seed)


def _early_stopping(plan: Plan) -> list[TrainerCallback]:
    """Return the early stopping callback; none without evaluations, as in a sweep of the rate."""
    given, arguments = plan.settings.recipe.training, plan.settings.arguments
    patience = given.get("early_stopping_patience")
    if patience is None or arguments.eval_strategy == IntervalStrategy.NO:
        return []
    return [EarlyStopping(patience, given.get("early_stopping_threshold") or 0.0)]
