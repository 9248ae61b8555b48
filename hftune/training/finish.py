# SPDX-License-Identifier: Apache-2.0
"""Finish a run after its last step: write metrics, plots, model card and model."""

import json
from collections.abc import Mapping
from typing import Any, cast

from peft import PeftModel
from torch import Tensor, nn

from hftune.core.console import warn
from hftune.core.files import atomic_write_json
from hftune.hub.model_card import model_card
from hftune.methods import method_row
from hftune.methods.tuners import TUNERS
from hftune.models.save import ModelMetadata, save_model
from hftune.report.summary import print_samples, print_summary
from hftune.runs.run import Run
from hftune.tasks import TASKS
from hftune.training.distributed.sharding import full_state_dict, is_sharded
from hftune.training.load_model import base_quantization, parameter_counts
from hftune.training.plan.plan import Plan
from hftune.training.trainer import HftuneTrainer


def finish(
    plan: Plan,
    trainer: HftuneTrainer,
    run: Run,
    base_fingerprint: dict[str, str] | None,
    trained: Mapping[str, object],
    evaluated: Mapping[str, object],
) -> Run:
    """Save model, metrics, plots and model card; every process takes part.

    Args:
        plan: The run.
        trainer: The Trainer after its last step.
        run: The run folder.
        base_fingerprint: Fingerprint of the base weights of an adapter.
        trained: Metrics of the training.
        evaluated: Metrics of the kept model.

    Returns:
        The run with its model and tokenizer; without them if the model in memory is sharded.
    """
    accelerator, method = trainer.accelerator, plan.objective.method
    main = plan.settings.arguments.process_index == 0
    throughput = trainer.throughput.summary(accelerator)
    counts = parameter_counts(trainer.model)
    weights = full_state_dict(accelerator, trainer.model_wrapped)
    model: Any = method.finish(cast(nn.Module, trainer.model))
    results = method.results(model, run.path if main else None)
    figures = {**trained, **_steps(trainer), **throughput, **evaluated, **counts, **results}
    if main:
        metadata = model_metadata(plan, base_fingerprint)
        _write_end(plan, run, model, metadata, figures, trainer.samples, weights)
    accelerator.wait_for_everyone()
    if is_sharded(accelerator):
        return Run(run.path)  # only the saved model is whole
    return Run(run.path, model=model.eval(), processor=plan.pretrained.processor)


def model_metadata(plan: Plan, base_fingerprint: dict[str, str] | None) -> ModelMetadata:
    """Return the facts about a plan that are saved with the model.

    Args:
        plan: The run.
        base_fingerprint: Fingerprint of the base weights of an adapter.
    """
    recipe, pretrained, task = plan.settings.recipe, plan.pretrained, plan.objective.task
    config = {**recipe.model.config, **pretrained.config_changes}
    pooling = recipe.model.classifier_pooling
    if pooling == "mean" and "classifier_pooling" in pretrained.config.to_dict():
        config["classifier_pooling"] = "mean"  # the architecture's own switch
    options, row = task.options(), method_row(recipe.method.name)
    return ModelMetadata(
        task=recipe.task,
        base_model=recipe.model.path,
        base_revision=recipe.model.revision,
        method=recipe.method.name,
        label_names=options.pop("label_names"),
        num_labels=task.unnamed_outputs,
        task_options=options,
        columns=plan.splits.examples.columns,
        max_length=pretrained.max_length,
        classifier_pooling=pooling,
        config=config,
        quantization=base_quantization(plan) if row.needs_base else None,
        tuner_module=_tuner_module(recipe.method.name),
        base_fingerprint=base_fingerprint,
        no_merge=row.no_merge,
    )


def _steps(trainer: HftuneTrainer) -> dict[str, int]:
    """Return the optimizer steps that were taken and planned, and the step of the kept weights."""
    state = trainer.state
    steps = {"train_steps": state.global_step, "planned_steps": state.max_steps}
    best = state.best_global_step if trainer.args.load_best_model_at_end else None
    return {**steps, **({"best_step": best} if best else {})}


def _write_end(
    plan: Plan,
    run: Run,
    model: Any,
    metadata: ModelMetadata,
    figures: dict[str, object],
    samples: list[dict[str, str]],
    weights: dict[str, Tensor] | None,
) -> None:
    from hftune.report.gradient_flow import draw_gradient_flow, layer_norms, verdict
    from hftune.report.training_curves import draw_curves

    card = model_card(metadata, figures, adapter=isinstance(model, PeftModel))
    atomic_write_json(run.path / "metrics.json", figures)
    lines = (run.path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    draw_curves(log, run.path / "plots")
    norms = layer_norms(log)
    draw_gradient_flow(norms, run.path / "plots")
    if wrong := verdict(norms):
        warn(wrong)
    # The model comes last: a run folder with a model counts as finished.
    save_model(run.model_path, model, plan.pretrained.processor, metadata, card, weights)
    print_samples(samples)
    print_summary(run.path, figures, TASKS[metadata.task].example_file)


def _tuner_module(method: str) -> str | None:
    """Return the module that PEFT must import for a method that hftune adds to it."""
    row = TUNERS.get(method)
    return None if row is None or row.options is None else row.options.partition(":")[0]
