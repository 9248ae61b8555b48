# SPDX-License-Identifier: Apache-2.0
"""``TrainingArguments`` out of a recipe, and the precision that is in force."""

import os

import torch
from transformers import (
    TrainingArguments,
)

from hftune.core.console import say
from hftune.core.errors import RecipeError
from hftune.hub.clean import PUSH_FIELDS
from hftune.recipe.recipe import Recipe
from hftune.training.launch import Launch, precision


def training_arguments(recipe: Recipe, launch: Launch) -> TrainingArguments:
    """Build ``TrainingArguments``, which have the last word on their fields.

    Args:
        recipe: What to do.
        launch: What the launcher asked for; a precision in the recipe counts for more.

    Raises:
        RecipeError: They refuse a value, or fp16 is asked of a CPU.
    """
    given = {key: value for key, value in recipe.training.items() if key not in PUSH_FIELDS}
    given["output_dir"] = recipe.training.get("output_dir") or "runs"
    given.setdefault("dataloader_pin_memory", torch.accelerator.is_available())
    given.setdefault("disable_tqdm", True)
    if given.get("eval_strategy", "no") != "no":
        given.setdefault("metric_for_best_model", "loss")  # until the task says its own
    if launch.use_cpu:
        given["use_cpu"] = True  # without it the Trainer refuses bf16 where there is no GPU
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
