# SPDX-License-Identifier: Apache-2.0
"""Everything before the weights: arguments, tokenizer, config, rows, method and loss, checked."""

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from datasets import Dataset
from numpy.typing import NDArray
from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from hftune.core.console import say
from hftune.core.errors import HftuneError, RecipeError
from hftune.core.surgery import num_positions
from hftune.data import report
from hftune.data.report import data_report, imbalance, label_counts
from hftune.hub.clean import PUSH_FIELDS
from hftune.hub.load import load_config, load_tokenizer, model_location
from hftune.losses import LOSSES
from hftune.losses.contract import LabelFacts, Loss
from hftune.methods import METHODS, PEFT
from hftune.methods.contract import Method, MethodContext
from hftune.methods.peft import is_prompt_learning
from hftune.metrics.external import ExternalMetric, Metric, load_metrics
from hftune.recipe.recipe import Recipe
from hftune.recipe.resolve import LOWER_IS_BETTER
from hftune.recipe.schema import TASK_OPTIONS, Choice
from hftune.recipe.suggest import did_you_mean
from hftune.tasks import TASKS
from hftune.tasks.contract import Encoded, Task
from hftune.tasks.problem_types import SINGLE_LABEL
from hftune.training.encode import encode_part
from hftune.training.rows import Parts, read_parts
from hftune.training.streaming import TokenStream, open_stream, token_stream

PERCENTILES = (50, 90, 99, 100)
NO_LIMIT = 10**6  # tokenizers without a limit say a number far above this


@dataclass
class Plan:
    """A checked run that only lacks its weights.

    Attributes:
        recipe: What was asked for.
        arguments: The Trainer's arguments; ``output_dir`` is the run's checkpoint folder.
        task: Knows its label names.
        location: Hub id or folder of the base model.
        config: The model's config with overrides and labels.
        config_changes: Fields that the task set in it, which a plain load must be told.
        tokenizer: The base model's.
        parts: The rows before tokenizing.
        train: Encoded training rows; of a stream, the first ones.
        validation: Encoded validation rows, if there are any.
        max_length: Tokens a row may have; None for no limit.
        method: What trains.
        loss: Fitted to the training rows.
        loss_choice: Its name and options; None for a loss of one's own.
        adapted: The model without weights as the method changes it, where that can be known.
        stream: What trains in place of ``train``, with ``data.streaming``.
    """

    recipe: Recipe
    arguments: TrainingArguments
    task: Task
    location: str
    config: PreTrainedConfig
    config_changes: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    parts: Parts
    train: Encoded
    validation: Encoded | None
    max_length: int | None
    method: Method
    loss: Loss
    loss_choice: Choice | None = None
    adapted: nn.Module | None = None
    stream: TokenStream | None = None

    def context(self, new_modules: tuple[str, ...] = ()) -> MethodContext:
        """Return what the method may know."""
        arguments = self.arguments
        return MethodContext(
            task=self.task.name,
            new_modules=new_modules,
            num_training_steps=num_training_steps(arguments, self.train.num_rows),
            gradient_checkpointing=bool(
                arguments.gradient_checkpointing or arguments.activation_checkpointing
            ),
            mixed_precision=mixed_precision(arguments) != "no",
            revision=self.recipe.model.revision,
        )

    def skeleton(self) -> PreTrainedModel:
        """Return the model without weights, on the meta device."""
        with init_empty_weights(include_buffers=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: PreTrainedModel = self.task.auto_model.from_config(self.config)
        model.tie_weights()
        return model

    def report(self) -> dict[str, Any]:
        """Return ``data.json``: sources, hashes, counts, lengths, duplicates, scripts."""
        counts = self.class_counts()
        return {
            "sources": self.parts.sources,
            "streamed": self.stream is not None,
            "columns": self.parts.columns,
            "max_length": self.max_length,
            "empty_texts": self.parts.empty_texts,
            "train": _part_report(self.train),
            "validation": None if self.validation is None else _part_report(self.validation),
            "classes": dict(zip(self.task.label_names, map(int, counts), strict=False)),
            "imbalance": imbalance(counts) if self.task.label_names else None,
            **self.data_report,
        }

    @cached_property
    def data_report(self) -> dict[str, Any]:
        """What the selected rows hold; see :func:`hftune.data.report.data_report`."""
        return data_report(self.parts.train, self.parts.validation)

    def class_counts(self) -> NDArray[np.integer[Any]]:
        """Return how often each class is a label, of all training rows where that can be known."""
        if self.train.drawn_from is not None and self.task.problem_type == SINGLE_LABEL:
            return label_counts(self.parts.train, self.task.label_names)
        return self.task.class_counts(self.train.rows, self.num_classes())

    def remarks(self) -> list[str]:
        """Return what the user should know of rows that do not count as meant."""
        parts = [part for part in (self.train, self.validation) if part is not None]
        remarks = []
        if self.stream is not None:
            remarks.append("the training rows are streamed; what is said here is of the first ones")
        if untrained := sum(part.untrained for part in parts):
            remarks.append(f"{untrained} rows have no trained token and are left out")
        if expanded := sum(part.expanded for part in parts):
            remarks.append(
                f"the chat template rewrites earlier turns, so conversations became one row for "
                f"each assistant turn: {expanded} rows more"
            )
        if empty := self.parts.empty_texts:
            remarks.append(f"{empty} training rows have an empty text")
        return [*remarks, *report.remarks(self.data_report)]

    def num_classes(self) -> int:
        """Return how many classes the model's head tells apart."""
        if self.task.problem_type == "regression":
            return 1
        return len(self.task.label_names) or int(self.config.get_text_config().vocab_size)


def prepare(
    recipe: Recipe,
    *,
    train_dataset: Dataset | None = None,
    eval_dataset: Dataset | None = None,
    loss: Loss | None = None,
    metrics: Sequence[Metric] | None = None,
    own_model: bool = False,
    sample: int | None = None,
) -> Plan:
    """Turn a recipe into a :class:`Plan`.

    Args:
        recipe: What to do.
        train_dataset: Rows in place of ``data.path``.
        eval_dataset: Rows in place of ``data.validation``.
        loss: A loss of one's own in place of the recipe's.
        metrics: Metrics of the ``evaluate`` library in place of ``evaluation.metrics``.
        own_model: Whether a model of one's own takes the place of the recipe's and its method.
        sample: Encode so many rows of a large part, for a look that does not train.

    Raises:
        HftuneError: Something in the recipe, the data or the environment does not fit.
    """
    arguments = training_arguments(recipe)
    task = build_task(recipe)
    location = model_location(recipe.model.path)
    if recipe.model.revision is not None and location != recipe.model.path:
        raise RecipeError(["model.revision: a demo model has none"])
    config = load_config(location, recipe.model.config, recipe.model.revision)
    tokenizer = load_tokenizer(location, recipe.model.revision)
    if tokenizer.pad_token is None and recipe.task != "text-generation":
        tokenizer.pad_token = tokenizer.eos_token

    streamed = None
    if recipe.data.streaming and train_dataset is eval_dataset is None:
        parts, streamed = open_stream(recipe, task)
    elif recipe.data.streaming:
        raise RecipeError(["data.streaming: rows handed over in Python are not streamed"])
    else:
        parts = read_parts(recipe, task, train_dataset, eval_dataset)
    guessed = parts.columns.keys() - recipe.data.columns.keys()
    if guessed:
        say(f"columns: {', '.join(f'{r} = {c}' for r, c in parts.columns.items() if r in guessed)}")
    task.learn(parts.train, parts.validation)
    task.external_metrics = _external_metrics(recipe, task, metrics)
    _settle_best_metric(recipe, arguments, task)
    loss_choice = None if loss is not None else _loss_choice(recipe, task)
    config_changes = task.configure(config, tokenizer)
    limit = longest_row(recipe, config, tokenizer)
    encode = partial(encode_part, task, tokenizer=tokenizer, max_length=limit, sample=sample)
    plan = Plan(
        recipe=recipe,
        arguments=arguments,
        task=task,
        location=location,
        config=config,
        config_changes=config_changes,
        tokenizer=tokenizer,
        parts=parts,
        train=encode(parts.train),
        validation=None if parts.validation is None else encode(parts.validation),
        max_length=limit,
        method=build_method(recipe),
        loss=loss if loss is not None else build_loss(loss_choice),
        loss_choice=loss_choice,
    )
    if streamed is not None:
        plan.stream = token_stream(streamed, parts.columns, task, tokenizer, limit, arguments)
    plan.loss.fit(
        LabelFacts(
            classes=task.classes(tokenizer, plan.num_classes()),
            counts=plan.class_counts().tolist(),
            rows=plan.train.num_rows,
            label_smoothing=arguments.label_smoothing_factor,
            causal=task.causal,
        )
    )
    if not own_model:
        plan.adapted = plan.method.check(plan.skeleton(), plan.context())
    return plan


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """Build ``TrainingArguments``, which have the last word on their fields.

    Raises:
        RecipeError: They refuse a value, or fp16 is asked of a CPU.
    """
    given = {key: value for key, value in recipe.training.items() if key not in PUSH_FIELDS}
    given["output_dir"] = recipe.training.get("output_dir") or "runs"
    given.setdefault("dataloader_pin_memory", torch.accelerator.is_available())
    given.setdefault("disable_tqdm", True)
    if given["eval_strategy"] != "no":
        given.setdefault("metric_for_best_model", "loss")  # until the task says its own
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
        given["use_cpu"] = True  # without it each process would train alone, on all rows
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if not launched and not {"bf16", "fp16"} & given.keys() and not given.get("use_cpu"):
        given["bf16"] = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    try:
        arguments = TrainingArguments(**given, logging_nan_inf_filter=False)
        on_cpu = arguments.device.type == "cpu"
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise RecipeError([f"training: {str(error).strip().splitlines()[0]}"]) from error
    sharded = {"fsdp": arguments.fsdp, "deepspeed": arguments.deepspeed}
    for name, given_here in sharded.items():
        if given_here or os.environ.get(f"ACCELERATE_USE_{name.upper()}") == "true":
            raise RecipeError([f"training.{name}: sharded models are not supported yet"])
    if arguments.fp16 and on_cpu:
        raise RecipeError(["training.fp16: fp16 does nothing on a CPU; leave it out"])
    if arguments.n_gpu > 1:
        say(f"using one of {arguments.n_gpu} GPUs; --accelerate multi_gpu uses all of them")
        arguments._n_gpu = 1
    return arguments


def mixed_precision(arguments: TrainingArguments) -> str:
    """Return the precision in force, the launcher's word included: no, bf16, fp16 or fp8."""
    if arguments.bf16 or arguments.fp16:
        return "bf16" if arguments.bf16 else "fp16"
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def build_task(recipe: Recipe) -> Task:
    """Return the recipe's task with the options that it takes."""
    options = {
        key.rpartition(".")[2]: recipe.value(key)
        for key, tasks in TASK_OPTIONS.items()
        if recipe.task in tasks and recipe.value(key) is not None
    }
    task: Task = TASKS[recipe.task].resolve()(**options)
    return task


def _external_metrics(
    recipe: Recipe, task: Task, given: Sequence[Metric] | None
) -> list[ExternalMetric]:
    """Load metrics of other libraries.

    Raises:
        HftuneError: Only the recipe asks for them, and their scripts would run here.
    """
    if given is None and recipe.evaluation.metrics:
        raise RecipeError(
            ["evaluation.metrics: metrics by name or path are scripts that run on this machine"],
            hint="trust them with --trust-metrics, or in Python with metrics=[...]",
        )
    if given and not task.gives_predictions:
        raise HftuneError(f"evaluation.metrics: they need predictions, and {task.name} gives none")
    return load_metrics(given or (), task.metric_names)


def _settle_best_metric(recipe: Recipe, arguments: TrainingArguments, task: Task) -> None:
    """Check what the best model is chosen by, or let the task choose."""
    given = recipe.training.get("metric_for_best_model")
    metric = str(given or task.best_metric).removeprefix("eval_")
    external = [other.name for other in task.external_metrics if metric.startswith(other.name)]
    if external and "greater_is_better" not in recipe.training:
        raise RecipeError(
            [f"training.greater_is_better: say whether a higher {metric} is better: true or false"]
        )
    if metric not in task.metric_names and not external:
        near = did_you_mean(metric, task.metric_names)
        raise RecipeError(
            [f"training.metric_for_best_model: unknown metric {given!r}{near}"],
            hint=f"metrics: {', '.join(task.metric_names)}",
        )
    if arguments.metric_for_best_model is not None:
        arguments.metric_for_best_model = metric
        higher = recipe.training.get("greater_is_better")
        arguments.greater_is_better = metric not in LOWER_IS_BETTER if higher is None else higher


def _loss_choice(recipe: Recipe, task: Task) -> Choice:
    """Return the recipe's loss, or the task's own.

    Raises:
        RecipeError: It does not go with the labels.
    """
    choice = recipe.loss or Choice(name=task.default_loss)
    fits = LOSSES[choice.name].problem_types
    if task.problem_type is not None and task.problem_type not in fits:
        raise RecipeError(
            [f"loss: {choice.name} goes with {', '.join(fits)}, but this is {task.problem_type}"],
            hint=f"take {task.default_loss}, or set model.config.problem_type",
        )
    return choice


def build_loss(choice: Choice | None) -> Loss:
    """Return the loss that the recipe names."""
    assert choice is not None
    loss: Loss = LOSSES[choice.name].resolve()(**choice.options)
    return loss


def build_method(recipe: Recipe) -> Method:
    """Return the method that the recipe names."""
    name, options = recipe.method.name, recipe.method.options
    if name in METHODS:
        method: Method = METHODS[name].resolve()(**options)
        return method
    method = PEFT.resolve()(name, options)
    return method


def longest_row(
    recipe: Recipe, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> int | None:
    """Return the recipe's limit, or what the model takes; None where positions have no end.

    Raises:
        RecipeError: The recipe asks for more positions than the model has.
    """
    positions = num_positions(config)
    if positions is not None and is_prompt_learning(recipe.method.name):
        positions -= recipe.method.options.get("num_virtual_tokens") or 0
    asked = recipe.data.max_length
    if asked is not None:
        if positions is not None and asked > positions:
            raise RecipeError(
                [f"data.max_length: {asked} is beyond the model's {positions} positions"]
            )
        return asked
    takes = [positions, tokenizer.model_max_length]
    known: list[int] = [limit for limit in takes if limit is not None and limit < NO_LIMIT]
    return min(known, default=None)


def num_training_steps(arguments: TrainingArguments, rows: int) -> int:
    """Return the number of optimizer steps of a run over ``rows`` rows."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    batches = math.ceil(rows / (arguments.train_batch_size * arguments.world_size))
    steps: int = math.ceil(batches / arguments.gradient_accumulation_steps)
    epochs: float = arguments.num_train_epochs
    return math.ceil(steps * epochs)


def _part_report(part: Encoded) -> dict[str, Any]:
    lengths = np.percentile(part.lengths, PERCENTILES, method="inverted_cdf")
    return {
        "rows": part.num_rows,
        "cut": part.cut,
        "untrained": part.untrained,
        "length_percentiles": dict(zip(map(str, PERCENTILES), map(int, lengths), strict=True)),
    }
