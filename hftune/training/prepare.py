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
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from hftune.core.console import say
from hftune.core.errors import HftuneError, RecipeError
from hftune.core.files import sha256_of
from hftune.data.columns import find_columns
from hftune.data.load import DEMO, load_parts, source_files
from hftune.data.split import split_indices
from hftune.hub.load import load_config, load_tokenizer, model_location
from hftune.losses import LOSSES
from hftune.losses.contract import Loss
from hftune.methods import METHODS, PEFT
from hftune.methods.contract import Method, MethodContext
from hftune.methods.peft import is_prompt_learning
from hftune.recipe.recipe import Recipe
from hftune.tasks import TASKS
from hftune.tasks.contract import Encoded, Task

#: Models whose positions start behind the padding index.
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")
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
        tokenizer: The base model's.
        columns: Role to column name.
        train: Encoded training rows.
        validation: Encoded validation rows, if there are any.
        examples: Selected training rows before tokenizing.
        validation_examples: The same of the validation rows.
        max_length: Tokens a row may have; None for no limit.
        method: What trains.
        loss: Fitted to the training rows.
    """

    recipe: Recipe
    arguments: TrainingArguments
    task: Task
    location: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    columns: dict[str, str]
    train: Encoded
    validation: Encoded | None
    examples: Dataset
    validation_examples: Dataset | None
    max_length: int | None
    method: Method
    loss: Loss

    @property
    def empty_texts(self) -> int:
        """How many training rows have no text."""
        if "text" not in self.examples.column_names:
            return 0
        return sum(not text.strip() for text in self.examples["text"])

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
        section = self.recipe.data
        files = source_files(section.path or []) + source_files(section.validation or [])
        counts = self.task.class_counts(self.train.rows, self.num_classes())
        return {
            "sources": {str(file): sha256_of(file) for file in files} or str(section.path),
            "columns": self.columns,
            "max_length": self.max_length,
            "empty_texts": self.empty_texts,
            "train": _part_report(self.train),
            "validation": None if self.validation is None else _part_report(self.validation),
            "classes": dict(zip(self.task.label_names, map(int, counts), strict=False)),
        }

    def num_classes(self) -> int:
        """Return how many classes the model's head tells apart."""
        return len(self.task.label_names) or int(self.config.get_text_config().vocab_size)


def prepare(
    recipe: Recipe,
    *,
    train_dataset: Dataset | None = None,
    eval_dataset: Dataset | None = None,
    loss: Loss | None = None,
) -> Plan:
    """Turn a recipe into a :class:`Plan`.

    Args:
        recipe: What to do.
        train_dataset: Rows in place of ``data.path``.
        eval_dataset: Rows in place of ``data.validation``.
        loss: A loss of one's own in place of the recipe's.

    Raises:
        HftuneError: Something in the recipe, the data or the environment does not fit.
    """
    arguments = training_arguments(recipe)
    task: Task = TASKS[recipe.task].resolve()()
    location = model_location(recipe.model.path)
    config = load_config(location, recipe.model.config, recipe.model.revision)
    tokenizer = load_tokenizer(location, recipe.model.revision)
    if tokenizer.pad_token is None and recipe.task == "text-classification":
        tokenizer.pad_token = tokenizer.eos_token

    given_train, given_validation = _rows(recipe, train_dataset, eval_dataset)
    columns = find_columns(given_train.column_names, task.roles, _named_columns(recipe))
    guessed = {role: name for role, name in columns.items() if role not in recipe.data.columns}
    if guessed:
        say(f"columns: {', '.join(f'{role} = {name}' for role, name in guessed.items())}")
    train, validation = _parts(recipe, task, columns, given_train, given_validation)
    task.learn(train, validation)
    task.configure(config, tokenizer)
    limit = longest_row(recipe, config, tokenizer)
    encoded = task.encode(train, tokenizer, limit)
    held_out = None if validation is None else task.encode(validation, tokenizer, limit)
    if held_out is None and arguments.eval_strategy != "no":
        raise RecipeError(
            ["data: the rows are too few to split off a validation part"],
            hint="set data.validation_size: 0 to train without evaluation",
        )
    plan = Plan(
        recipe=recipe,
        arguments=arguments,
        task=task,
        location=location,
        config=config,
        tokenizer=tokenizer,
        columns=columns,
        train=encoded,
        validation=held_out,
        examples=train,
        validation_examples=validation,
        max_length=limit,
        method=build_method(recipe),
        loss=loss
        if loss is not None
        else LOSSES[recipe.loss.name].resolve()(**recipe.loss.options),
    )
    plan.loss.fit(
        task.classes(tokenizer, plan.num_classes()),
        task.class_counts(encoded.rows, plan.num_classes()).tolist(),
        label_smoothing=arguments.label_smoothing_factor,
    )
    plan.method.check(plan.skeleton(), plan.context())
    return plan


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """Build ``TrainingArguments``, which have the last word on their fields.

    Raises:
        RecipeError: They refuse a value, or fp16 is asked of a CPU.
    """
    given = {**recipe.training, "output_dir": recipe.training.get("output_dir") or "runs"}
    given.setdefault("dataloader_pin_memory", torch.accelerator.is_available())
    given.setdefault("disable_tqdm", True)
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
    if on_cpu and (arguments.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true"):
        raise RecipeError(["training.fsdp: on a CPU nothing would be sharded; use multi_cpu"])
    if arguments.fp16 and on_cpu:
        raise RecipeError(["training.fp16: fp16 does nothing on a CPU; leave it out"])
    if arguments.n_gpu > 1:
        say(f"using one of {arguments.n_gpu} GPUs; --accelerate multi_gpu uses all of them")
        arguments._n_gpu = 1
    return arguments


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
    text = config.get_text_config()
    positions: int | None = getattr(text, "max_position_embeddings", None)
    if positions is not None and config.model_type in OFFSET_POSITIONS:
        positions -= 2
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


def _rows(
    recipe: Recipe, train: Dataset | None, validation: Dataset | None
) -> tuple[Dataset, Dataset | None]:
    if train is not None:
        if len(train) == 0:
            raise HftuneError("train_dataset: no rows")
        return train, validation
    data = recipe.data
    if data.path is None:
        raise RecipeError(["data.path: missing"], hint="name it, or hand over train_dataset")
    rows, held_out = load_parts(
        data.path, data.validation, name=data.name, split=data.split, revision=data.revision
    )
    return rows, validation if validation is not None else held_out


def _named_columns(recipe: Recipe) -> dict[str, str]:
    """The user's columns over those of the demo rows."""
    if recipe.data.path != DEMO:
        return recipe.data.columns
    columns = {"group": "module"}
    if recipe.task == "text-classification":
        columns |= {"text": "summary", "label": "package"}
    return {**columns, **recipe.data.columns}


def _parts(
    recipe: Recipe,
    task: Task,
    columns: dict[str, str],
    given: Dataset,
    given_validation: Dataset | None,
) -> tuple[Dataset, Dataset | None]:
    """Select the columns, split where nothing is held out, and draw the samples asked for."""
    data, seed = recipe.data, recipe.training["seed"]
    rows = task.select(given, columns)
    if given_validation is not None:
        validation: Dataset | None = task.select(
            given_validation, find_columns(given_validation.column_names, task.roles, columns)
        )
    else:
        keys, strata = task.split_keys(rows)
        kept, held_out = split_indices(keys, strata, data.validation_size, seed)
        validation = rows.select(held_out) if held_out else None
        rows = rows.select(kept)
    rows = _sample(rows, data.max_train_samples, seed)
    if validation is not None:
        validation = _sample(validation, data.max_eval_samples, seed)
    return rows, validation


def _sample(rows: Dataset, number: int | None, seed: int) -> Dataset:
    if number is None or number >= len(rows):
        return rows
    return rows.select(sorted(np.random.default_rng(seed).permutation(len(rows))[:number]))


def _part_report(part: Encoded) -> dict[str, Any]:
    lengths = np.percentile(part.lengths, PERCENTILES, method="inverted_cdf")
    return {
        "rows": len(part.rows),
        "cut": part.cut,
        "untrained": part.untrained,
        "length_percentiles": dict(zip(map(str, PERCENTILES), map(int, lengths), strict=True)),
    }
