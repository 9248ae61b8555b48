# SPDX-License-Identifier: Apache-2.0
"""Everything before the weights: arguments, tokenizer, config, rows, method and loss, checked."""

import math
import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from datasets import Dataset
from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from hftune.core.console import say
from hftune.core.errors import RecipeError
from hftune.hub.load import load_config, load_tokenizer, model_location, num_positions
from hftune.losses import LOSSES
from hftune.losses.contract import Loss
from hftune.methods import METHODS, PEFT
from hftune.methods.contract import Method, MethodContext
from hftune.methods.peft import is_prompt_learning
from hftune.recipe.recipe import Recipe
from hftune.recipe.suggest import did_you_mean
from hftune.tasks import TASKS
from hftune.tasks.contract import Encoded, Task
from hftune.training.launch import Launch, check_launch, precision
from hftune.training.rows import Parts, read_parts

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
        train: Encoded training rows.
        validation: Encoded validation rows, if there are any.
        max_length: Tokens a row may have; None for no limit.
        method: What trains.
        loss: Fitted to the training rows.
        launch: What the launcher asked for.
        adapted: The model without weights as the method changes it, where that can be known.
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
    launch: Launch
    adapted: nn.Module | None = None

    def context(self, new_modules: tuple[str, ...] = ()) -> MethodContext:
        """Return what the method may know."""
        arguments = self.arguments
        return MethodContext(
            task=self.task.name,
            new_modules=new_modules,
            num_training_steps=num_training_steps(arguments, len(self.train.rows)),
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
        """Return ``data.json``: sources, hashes, counts, lengths."""
        counts = self.task.class_counts(self.train.rows, self.num_classes())
        return {
            "sources": self.parts.sources,
            "columns": self.parts.columns,
            "max_length": self.max_length,
            "empty_texts": self.parts.empty_texts,
            "train": _part_report(self.train),
            "validation": None if self.validation is None else _part_report(self.validation),
            "classes": dict(zip(self.task.label_names, map(int, counts), strict=False)),
        }

    def remarks(self) -> list[str]:
        """Return what the user should know of rows that do not count as meant."""
        parts = [part for part in (self.train, self.validation) if part is not None]
        remarks = []
        if untrained := sum(part.untrained for part in parts):
            remarks.append(f"{untrained} rows have no trained token and are left out")
        if empty := self.parts.empty_texts:
            remarks.append(f"{empty} training rows have an empty text")
        return remarks

    def num_classes(self) -> int:
        """Return how many classes the model's head tells apart."""
        return len(self.task.label_names) or int(self.config.get_text_config().vocab_size)


def prepare(
    recipe: Recipe,
    *,
    train_dataset: Dataset | None = None,
    eval_dataset: Dataset | None = None,
    loss: Loss | None = None,
    own_model: bool = False,
) -> Plan:
    """Turn a recipe into a :class:`Plan`.

    Args:
        recipe: What to do.
        train_dataset: Rows in place of ``data.path``.
        eval_dataset: Rows in place of ``data.validation``.
        loss: A loss of one's own in place of the recipe's.
        own_model: Whether a model of one's own takes the place of the recipe's and its method.

    Raises:
        HftuneError: Something in the recipe, the data or the environment does not fit.
    """
    launch = check_launch(recipe, own_model)
    arguments = training_arguments(recipe, launch)
    task: Task = TASKS[recipe.task].resolve()()
    _check_best_metric(arguments, task)
    location = model_location(recipe.model.path)
    if recipe.model.revision is not None and location != recipe.model.path:
        raise RecipeError(["model.revision: a demo model has none"])
    config = load_config(location, recipe.model.config, recipe.model.revision)
    tokenizer = load_tokenizer(location, recipe.model.revision)
    if tokenizer.pad_token is None and recipe.task == "text-classification":
        tokenizer.pad_token = tokenizer.eos_token

    parts = read_parts(recipe, task, train_dataset, eval_dataset)
    guessed = parts.columns.keys() - recipe.data.columns.keys()
    if guessed:
        say(f"columns: {', '.join(f'{r} = {c}' for r, c in parts.columns.items() if r in guessed)}")
    task.learn(parts.train, parts.validation)
    config_changes = task.configure(config, tokenizer)
    limit = longest_row(recipe, config, tokenizer)
    plan = Plan(
        recipe=recipe,
        arguments=arguments,
        task=task,
        location=location,
        config=config,
        config_changes=config_changes,
        tokenizer=tokenizer,
        parts=parts,
        train=task.encode(parts.train, tokenizer, limit),
        validation=(
            None if parts.validation is None else task.encode(parts.validation, tokenizer, limit)
        ),
        max_length=limit,
        method=build_method(recipe),
        loss=loss
        if loss is not None
        else LOSSES[recipe.loss.name].resolve()(**recipe.loss.options),
        launch=launch,
    )
    plan.loss.fit(
        task.classes(tokenizer, plan.num_classes()),
        task.class_counts(plan.train.rows, plan.num_classes()).tolist(),
        label_smoothing=arguments.label_smoothing_factor,
    )
    if not own_model:
        plan.adapted = plan.method.check(plan.skeleton(), plan.context())
    return plan


def training_arguments(recipe: Recipe, launch: Launch) -> TrainingArguments:
    """Build ``TrainingArguments``, which have the last word on their fields.

    Args:
        recipe: What to do.
        launch: What the launcher asked for; a precision in the recipe counts for more.

    Raises:
        RecipeError: They refuse a value, or fp16 is asked of a CPU.
    """
    given = {**recipe.training, "output_dir": recipe.training.get("output_dir") or "runs"}
    given.setdefault("dataloader_pin_memory", torch.accelerator.is_available())
    given.setdefault("disable_tqdm", True)
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not alone and launch.sharding is None and not torch.accelerator.is_available():
        given["use_cpu"] = True  # without it each process would train alone, on all rows
    if launch.mixed_precision is not None:
        os.environ["ACCELERATE_MIXED_PRECISION"] = precision(recipe, launch)
    elif not {"bf16", "fp16"} & given.keys() and not given.get("use_cpu"):
        given["bf16"] = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    try:
        arguments = TrainingArguments(**given, logging_nan_inf_filter=False)
        on_cpu = arguments.device.type == "cpu"
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise RecipeError([f"training: {str(error).strip().splitlines()[0]}"]) from error
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


def _check_best_metric(arguments: TrainingArguments, task: Task) -> None:
    metric = arguments.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_") not in task.metric_names:
        near = did_you_mean(metric.removeprefix("eval_"), task.metric_names)
        raise RecipeError(
            [f"training.metric_for_best_model: unknown metric {metric!r}{near}"],
            hint=f"metrics: {', '.join(task.metric_names)}",
        )


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
        "rows": len(part.rows),
        "cut": part.cut,
        "untrained": part.untrained,
        "length_percentiles": dict(zip(map(str, PERCENTILES), map(int, lengths), strict=True)),
    }
