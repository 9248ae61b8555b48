# SPDX-License-Identifier: Apache-2.0
"""From a plan to a Trainer: weights, method, loss, callbacks. The only place that makes one."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import IntervalStrategy

from hftune.core.console import say
from hftune.core.errors import HftuneError
from hftune.distillation.teaching import Teaching, training_rows, with_teacher
from hftune.initialization.initialize import InitializationContext, initialize
from hftune.methods import method_row
from hftune.models.adapter import loaded_weights
from hftune.models.fingerprint import fingerprint
from hftune.models.keep_layers import with_layers
from hftune.models.load import load_weights, quantization_config, was_pooled_by_mean
from hftune.models.pooling import pool_by_mean
from hftune.models.structure import new_modules, unused_pooler
from hftune.speed.fused_lora import fused_lora
from hftune.speed.padding_free import padding_free
from hftune.training.callbacks.early_stopping import EarlyStopping
from hftune.training.callbacks.generalization_gap import GeneralizationGap
from hftune.training.callbacks.no_input_gradients import NoInputGradients
from hftune.training.distributed.sharding import is_sharded, name_layers
from hftune.training.plan.arguments import mixed_precision
from hftune.training.plan.plan import Plan
from hftune.training.plan.token_budget import padded_by_run
from hftune.training.trainer import HftuneTrainer

#: Rows on which lsuv looks at the outputs of new layers.
LSUV_ROWS = 32


def build_model(plan: Plan) -> nn.Module:
    """Load the weights and let the method decide what trains.

    New modules are drawn from the recipe's seed, so that equal recipes start equal.
    """
    set_seed(plan.arguments.seed)
    section = plan.recipe.model
    model, missing = load_weights(
        plan.task.auto_model,
        plan.location,
        config=plan.whole_config or plan.config,
        dtype=weight_dtype(plan),
        revision=section.revision,
        attn_implementation=section.attention,
        quantization_config=quantization_config(base_quantization(plan)),
    )
    if section.keep_layers is not None:
        model = with_layers(model, plan.config, section.keep_layers)
    if method_row(plan.recipe.method.name).needs_base:
        plan.base_fingerprint = fingerprint(loaded_weights(model, missing))
    if plan.recipe.initialization.is_said:
        missing = [*missing, *_initialize(plan, model, missing)]
    new = new_modules(model, missing)
    if new:
        say(f"not out of the checkpoint: {', '.join(new)}")
    if section.classifier_pooling == "mean":
        pool_by_mean(model)
    if was_pooled_by_mean(plan.location, section.revision):
        unused = unused_pooler(model)
        if unused and unused not in new:
            say(
                f"{unused} trains too: this checkpoint was made with mean pooling and never used it"
            )
            new = (*new, unused)
    plan.new_modules = new
    return plan.method.apply(model, plan.context(new))


def _initialize(plan: Plan, model: Any, missing: Sequence[str]) -> list[str]:
    """Draw new weights as the recipe says; return what was pretrained and is drawn anew."""

    def batch() -> dict[str, Any]:
        rows, collate = plan.train.dataset, plan.task.collator(plan.tokenizer, model)
        made = collate([rows[index] for index in range(min(LSUV_ROWS, len(rows)))])
        if not model.config.is_encoder_decoder:
            made.pop("labels")
        return {key: value.to(model.device) for key, value in made.items()}

    counts = plan.class_counts().tolist() if plan.task.labels_compete else None
    context = InitializationContext(seed=plan.arguments.seed, counts=counts, batch=batch)
    return initialize(model, missing, plan.recipe.initialization, context)


def base_quantization(plan: Plan) -> dict[str, Any] | None:
    """Return the recipe's quantization, with heads and poolers left as they are: those train."""
    given = plan.recipe.model.quantization
    if given is None:
        return None
    skeleton = plan.skeleton()
    heads = {name for name, _ in skeleton.named_children()} - {skeleton.base_model_prefix}
    spared = [*(given.get("llm_int8_skip_modules") or ()), *sorted(heads)]
    spared.append(r"(.*\.)?pooler")  # patterns match from the start of the whole name
    return {**given, "llm_int8_skip_modules": list(dict.fromkeys(spared))}


def build_trainer(
    plan: Plan, model: nn.Module, callbacks: Sequence[TrainerCallback] = ()
) -> HftuneTrainer:
    """Make the Trainer."""
    if plan.method.changes_what_trains and plan.arguments.ddp_find_unused_parameters is None:
        plan.arguments.ddp_find_unused_parameters = True  # also where activations are recomputed
    rows = rows_of(plan)
    averaging = plan.optimization.build_averaging(model, plan.span.total)
    loss = with_teacher(plan.loss, teaching_of(plan), rows, model, averaging)
    sharpness = plan.regularization.build_sharpness(model)
    trainer = HftuneTrainer(
        model=model,
        args=plan.arguments,
        task=plan.task,
        loss=loss,
        method=plan.method,
        optimization=plan.optimization,
        averaging=averaging,
        drawing=plan.drawing if plan.token_batches is None else plan.token_batches,
        penalty=plan.optimization.build_penalty(model, plan.new_modules),
        weight_noise=plan.regularization.build_weight_noise(model),
        train_dataset=rows if plan.stream is None else plan.stream,
        eval_dataset=None if plan.validation is None else plan.validation.dataset,
        data_collator=plan.task.collator(plan.tokenizer, model),
        processing_class=plan.tokenizer,
        callbacks=[
            *plan.method.callbacks(model),
            *([] if averaging is None else [averaging]),
            *([] if sharpness is None else [sharpness]),  # its gradient is clipped like any other
            *plan.optimization.callbacks(),
            *plan.regularization.callbacks(model),
            NoInputGradients(),
            *([] if plan.drawing is None else plan.drawing.callbacks()),
            *loss.callbacks(plan.span.total),
            *_early_stopping(plan),
            *callbacks,
        ],
    )
    if plan.recipe.evaluation.gap and plan.validation is not None:
        number, seed = plan.validation.num_rows, plan.arguments.seed
        trainer.add_callback(
            GeneralizationGap(trainer, plan.task, plan.train.dataset, number, seed)
        )
    name_layers(trainer.accelerator, model)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def rows_of(plan: Plan) -> Dataset:
    """Return the rows that train, those without labels among them."""
    unlabelled = None if plan.unlabelled is None else plan.unlabelled.dataset
    return training_rows(plan.loss, plan.train.dataset, unlabelled)


def teaching_of(plan: Plan) -> Teaching:
    """Return the facts that teachers need."""
    return Teaching(
        task=plan.task,
        teachers=plan.teachers,
        student=plan.config,
        context=plan.context(),
        streamed=plan.stream is not None,
    )


@contextmanager
def without_padding(plan: Plan, trainer: HftuneTrainer) -> Iterator[None]:
    """Spare the layers padding and needless passes while the context lasts, where that is exact.

    Raises:
        HftuneError: ``data.padding_free`` or a token budget insists, and it cannot be.
    """
    wanted, why = plan.recipe.data.padding_free, None
    if is_sharded(trainer.accelerator):
        why = "it is not tested with a sharded model"
    else:
        why = padded_by_run(plan.recipe, plan.arguments)
    if why is not None and wanted:
        raise HftuneError(f"data.padding_free: {why}", hint="leave it out")
    model = cast(nn.Module, trainer.model)
    with ExitStack() as stack:
        with trainer.accelerator.autocast():  # as the steps compute
            packed = padding_free(model, False if why else wanted)
            reason = stack.enter_context(packed)
        as_it_is = is_sharded(trainer.accelerator) or plan.arguments.torch_compile
        stack.enter_context(fused_lora(model, not as_it_is))
        trainer.throughput.padding_free = not (why or reason)
        if why or reason:
            say(f"batches are padded: {why or reason}")
            _check_budget(plan, why or reason)
        yield


def _check_budget(plan: Plan, reason: str | None) -> None:
    """Raise if batches were packed for layers that work on tokens alone."""
    if plan.token_batches is not None and plan.token_batches.padded is None:
        raise HftuneError(
            f"data.token_budget: padding does not count in it, and batches are padded: {reason}",
            hint="data.padding_free: false; then padding counts, and rows of like length come "
            "together",
        )


def _early_stopping(plan: Plan) -> list[TrainerCallback]:
    """What ends the run early; nothing where nothing is evaluated, as in a look for a rate."""
    given, arguments = plan.recipe.training, plan.arguments
    patience = given.get("early_stopping_patience")
    if patience is None or arguments.eval_strategy == IntervalStrategy.NO:
        return []
    return [EarlyStopping(patience, given.get("early_stopping_threshold") or 0.0)]


def weight_dtype(plan: Plan) -> Any:
    """Return the type that the weights are loaded in.

    ``auto`` means float32 where weights themselves train, where a CPU would run anything else many
    times slower, and where nothing else is computed in half precision; a frozen base on an
    accelerator keeps the checkpoint's type under mixed precision.
    """
    dtype = plan.recipe.model.dtype
    if dtype != "auto":
        return getattr(torch, dtype)
    halved = plan.arguments.device.type != "cpu" and mixed_precision(plan.arguments) != "no"
    return "auto" if method_row(plan.recipe.method.name).needs_base and halved else torch.float32


def parameter_counts(model: nn.Module | None) -> dict[str, int]:
    """Return how many parameters train, and how many there are."""
    sizes = {
        id(parameter): (_size(module, name, parameter), parameter.requires_grad)
        for module in (model.modules() if model else ())
        for name, parameter in module.named_parameters(recurse=False)
    }
    return {
        "trainable_parameters": sum(size for size, trains in sizes.values() if trains),
        "parameters": sum(size for size, _ in sizes.values()),
    }


def _size(module: Any, name: str, parameter: Any) -> int:
    """How many weights a parameter stands for."""
    if type(module).__name__ == "Linear4bit" and name == "weight":  # packed, and maybe sharded
        return int(module.in_features * module.out_features)
    # Between steps DeepSpeed leaves an empty tensor in place of a sharded parameter.
    return int(getattr(parameter, "ds_numel", parameter.numel()))
