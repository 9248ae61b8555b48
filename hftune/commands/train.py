# SPDX-License-Identifier: Apache-2.0
"""``hftune train``: a recipe becomes a fine-tuned model in a run folder."""

import dataclasses
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import TrainOutput

from hftune.commands.push import push, push_command
from hftune.core.console import number_of, say, warn
from hftune.core.errors import HftuneError, RunError
from hftune.core.files import atomic_write, atomic_write_json
from hftune.core.processes import on_main_process
from hftune.evaluation.external import Metric
from hftune.hub.model_card import model_card
from hftune.hub.push_request import PushOrder, check_push
from hftune.losses.loss import Loss
from hftune.methods import method_row
from hftune.methods.probe.method import Probe
from hftune.methods.tuners import TUNERS
from hftune.models.save import ModelMetadata, save_model
from hftune.recipe.recipe import Recipe
from hftune.report.summary import print_fit, print_samples, print_summary
from hftune.runs.run import RECIPE_FILE, Run, choose_folder, claimed, environment
from hftune.tasks import TASKS
from hftune.training.build import (
    base_quantization,
    build_model,
    build_trainer,
    parameter_counts,
    without_padding,
)
from hftune.training.callbacks.progress import JsonLog, ProgressReport, SampleLog
from hftune.training.checkpoints import latest_checkpoint
from hftune.training.distributed.launcher import Launch
from hftune.training.distributed.sharding import (
    check_resumed,
    check_resumed_base,
    distribution,
    in_a_line,
    is_sharded,
    precision_in_force,
    whole_weights,
)
from hftune.training.frozen_layer_cache import kept_trunk
from hftune.training.memory.memory_report import say_outlook
from hftune.training.plan.plan import Plan
from hftune.training.plan.prepare import prepare
from hftune.training.trainer import HftuneTrainer

if TYPE_CHECKING:
    from hftune.methods.probe.fit import Fitting

FITTED_AGAIN = "run it again: its features are in the cache"


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
    plan = prepare(
        recipe,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        loss=loss,
        metrics=metrics,
        own_model=model,
    )
    _say_rows(plan)
    order = check_push(plan)
    if isinstance(plan.method, Probe):
        from hftune.methods.probe.fit import prepare_fit

        _check_without_trainer(model=model, loss=loss, callbacks=callbacks, resume=resume)
        return _fit(prepare_fit(plan), order)
    if model is None:
        say_outlook(plan)
    folder = _agreed_folder(plan, resume)
    main = plan.arguments.process_index == 0
    with claimed(folder) if main else nullcontext():
        run = Run(folder)
        checkpoint = str(latest_checkpoint(run.checkpoints)) if resume else None
        plan.arguments.output_dir = str(run.checkpoints)
        progress = ProgressReport()
        trainer = build_trainer(
            plan,
            model if model is not None else build_model(plan),
            [JsonLog(folder / "log.jsonl"), progress, *callbacks],
        )
        trainer.add_callback(SampleLog(folder / "samples.jsonl", lambda: trainer.samples))
        with without_padding(plan, trainer), kept_trunk(plan, trainer):
            _begin(plan, folder, trainer, resume)
            result = _train(trainer, progress, folder, checkpoint)
            evaluated = _final_evaluation(plan, trainer)
        throughput = trainer.throughput.summary(trainer.accelerator)
        figures = {
            **result.metrics, **_steps(trainer), **throughput, **evaluated,
            **parameter_counts(trainer.model),
        }  # fmt: skip
        weights = whole_weights(trainer.accelerator, trainer.model_wrapped)
        finished: Any = plan.method.finish(cast(nn.Module, trainer.model))
        pruned = plan.method.pruned()
        if pruned:
            from hftune.report.sparsity import sparsity_figures, write_sparsity

            figures |= sparsity_figures(pruned, finished)
            if main:
                write_sparsity(pruned, run.path)
        if main:
            _write_end(plan, run, finished, trainer.samples, figures, weights)
        trainer.accelerator.wait_for_everyone()
    if order is not None:
        on_main_process(plan.arguments, lambda: _push(run, order))
    if is_sharded(trainer.accelerator):
        return Run(folder)  # the model in memory is in pieces; the saved one is whole
    return Run(folder, model=finished.eval(), tokenizer=plan.tokenizer)


def _train(
    trainer: HftuneTrainer, progress: ProgressReport, folder: Path, checkpoint: str | None
) -> TrainOutput:
    """Run the steps; who interrupts them is told how to go on."""
    try:
        return trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        progress.close()
        warn(f"interrupted; continue with: hftune train {folder} --resume")
        raise
    finally:
        progress.close()


def _steps(trainer: HftuneTrainer) -> dict[str, int]:
    """How many optimizer steps the run took of those planned, and which one's weights are kept."""
    state = trainer.state
    steps = {"train_steps": state.global_step, "planned_steps": state.max_steps}
    best = state.best_global_step if trainer.args.load_best_model_at_end else None
    return {**steps, **({"best_step": best} if best else {})}


def _check_without_trainer(**given: Any) -> None:
    """Raise if something is given that only a Trainer would use."""
    if names := [name for name, value in given.items() if value]:
        raise HftuneError(f"{', '.join(names)}: no Trainer runs for a probe", hint=FITTED_AGAIN)


def _fit(fitting: "Fitting", order: PushOrder | None) -> Run:
    """Fit a classifier on features; the run folder is that of a training without checkpoints."""
    from hftune.methods.probe.fit import fit_probe

    plan, folder = fitting.plan, choose_folder(fitting.plan.recipe)
    with claimed(folder):
        run = Run(folder)
        alone = {"mixed_precision": "no", "distribution": {"type": "NO", "machines": 1}}
        metadata = environment(plan.arguments, **alone)
        _write_story(plan, folder, metadata, plan.recipe.to_yaml(method=fitting.method))
        fitted = fit_probe(fitting)
        lines = [json.dumps({"step": step, **one}) for step, one in enumerate(fitted.tried, 1)]
        atomic_write(folder / "log.jsonl", "".join(f"{line}\n" for line in lines))
        atomic_write_json(folder / "metrics.json", fitted.figures)
        remembered = dataclasses.replace(model_facts(plan), probe=fitted.head.metadata())
        card = model_card(remembered, fitted.figures, adapter=True)
        save_model(run.model_path, fitted.head, plan.tokenizer, remembered, card)
        print_fit(folder, fitted.figures, TASKS[plan.recipe.task].example_file)
    if order is not None:
        _push(run, order)
    return run


def _agreed_folder(plan: Plan, resume: bool) -> Path:
    """Choose the run folder on the main process; the others, or a failure, follow it."""
    if resume:
        return on_main_process(plan.arguments, lambda: _resumed_folder(plan.recipe, plan.launch))
    return on_main_process(plan.arguments, lambda: choose_folder(plan.recipe))


def _resumed_folder(recipe: Recipe, launch: Launch) -> Path:
    folder = None
    if recipe.origin is not None and recipe.origin.name == RECIPE_FILE:
        folder = recipe.origin.parent
    elif recipe.training.get("output_dir"):
        folder = Path(recipe.training["output_dir"])
    if folder is None:
        raise HftuneError(
            "--resume continues a run, and this recipe does not lie in a run folder",
            hint="hftune train runs/NAME --resume",
        )
    if Run(folder).model_path.exists():
        raise HftuneError(f"{folder}: the run is finished; there is nothing to resume")
    check_resumed(folder, launch)
    return folder


def _say_rows(plan: Plan) -> None:
    parts = {"train": plan.train, "unlabelled": plan.unlabelled, "validation": plan.validation}
    known = {name: part for name, part in parts.items() if part is not None}
    say("rows: " + ", ".join(f"{len(part.dataset)} {name}" for name, part in known.items()))
    if plan.token_batches is not None:
        say(f"batches: {plan.token_batches}")
    cut = sum(part.num_truncated for part in known.values())
    if cut:
        say(f"{number_of(cut, 'row is', 'rows are')} cut at {plan.max_length} tokens")
    for remark in plan.remarks():
        warn(remark)


def _begin(plan: Plan, folder: Path, trainer: HftuneTrainer, resume: bool) -> None:
    """Write what is known before the run, or see that a resumed one stands where it stood."""
    if resume:
        check_resumed_base(plan, folder)
    elif plan.arguments.process_index == 0:
        _write_start(plan, folder, trainer)


def _write_start(plan: Plan, folder: Path, trainer: HftuneTrainer) -> None:
    accelerator, arguments = trainer.accelerator, plan.arguments
    metadata = environment(
        arguments, **precision_in_force(accelerator), distribution=distribution(accelerator)
    )
    if plan.base_fingerprint is not None:
        metadata["base_fingerprint"] = plan.base_fingerprint
    in_force: dict[str, Any] = {
        name: metadata["mixed_precision"] == name for name in ("bf16", "fp16")
    }
    if arguments.metric_for_best_model is not None:
        in_force["metric_for_best_model"] = arguments.metric_for_best_model
        in_force["greater_is_better"] = arguments.greater_is_better
    _write_story(plan, folder, metadata, plan.recipe.to_yaml(plan.loss_choice, **in_force))


def _write_story(plan: Plan, folder: Path, metadata: dict[str, Any], resolved: str) -> None:
    """Write what is known before the run: recipe, environment and data."""
    atomic_write(folder / RECIPE_FILE, f"# {in_a_line(metadata)}\n{resolved}")
    atomic_write_json(folder / "environment.json", metadata)
    atomic_write_json(folder / "data.json", plan.report())
    say(f"run folder: {folder}")


def _final_evaluation(plan: Plan, trainer: HftuneTrainer) -> dict[str, Any]:
    """Evaluate the model that is kept, class by class where there are classes."""
    if plan.validation is None:
        return {}
    output: Any = trainer.predict(plan.validation.dataset, metric_key_prefix="eval")
    kept, task = output.predictions, plan.task
    task.calibrate(kept)
    metrics = {f"eval_{name}": value for name, value in task.all_metrics(kept).items()}
    per_class = task.per_class(kept)
    return {**output.metrics, **metrics, **({"eval_per_class": per_class} if per_class else {})}


def _write_end(
    plan: Plan,
    run: Run,
    model: Any,
    samples: list[dict[str, str]],
    metrics: dict[str, Any],
    weights: dict[str, Tensor] | None,
) -> None:
    from hftune.report.gradient_flow import draw_gradient_flow, layer_norms, verdict
    from hftune.report.training_curves import draw_curves

    adapter = isinstance(model, PeftModel)
    metadata = model_facts(plan)
    card = model_card(metadata, metrics, adapter=adapter)
    atomic_write_json(run.path / "metrics.json", metrics)
    lines = (run.path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    draw_curves(log, run.path / "plots")
    norms = layer_norms(log)
    draw_gradient_flow(norms, run.path / "plots")
    if wrong := verdict(norms):
        warn(wrong)
    # Last, since a run with a model is a finished one.
    save_model(run.model_path, model, plan.tokenizer, metadata, card, weights)
    print_samples(samples)
    print_summary(run.path, metrics, TASKS[plan.recipe.task].example_file)


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


def model_facts(plan: Plan) -> ModelMetadata:
    """Return what the saved model must remember of its plan."""
    recipe = plan.recipe
    config = {**recipe.model.config, **plan.config_changes}
    if recipe.model.classifier_pooling == "mean" and "classifier_pooling" in plan.config.to_dict():
        config["classifier_pooling"] = "mean"  # the architecture's own switch
    options, method = plan.task.options(), method_row(recipe.method.name)
    return ModelMetadata(
        task=recipe.task,
        base_model=recipe.model.path,
        base_revision=recipe.model.revision,
        method=recipe.method.name,
        label_names=options.pop("label_names"),
        num_labels=plan.task.unnamed_outputs,
        task_options=options,
        columns=plan.parts.columns,
        max_length=plan.max_length,
        classifier_pooling=recipe.model.classifier_pooling,
        config=config,
        quantization=base_quantization(plan)
        if method_row(plan.recipe.method.name).needs_base
        else None,
        tuner_module=_tuner_module(recipe.method.name),
        base_fingerprint=plan.base_fingerprint,
        no_merge=method.no_merge,
    )


def _tuner_module(method: str) -> str | None:
    """Return what tells PEFT of a method that hftune adds to it."""
    row = TUNERS.get(method)
    return None if row is None or row.options is None else row.options.partition(":")[0]
