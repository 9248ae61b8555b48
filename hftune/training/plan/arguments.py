# SPDX-License-Identifier: Apache-2.0
"""``TrainingArguments`` out of a recipe, and the precision that is in force."""

import copy
import os
from dataclasses import replace
from typing import Any, Literal

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils.import_utils import is_torch_tf32_available

from hftune.core.console import say
from hftune.core.errors import RecipeError, first_line
from hftune.core.registry import named
from hftune.core.rules import installed
from hftune.methods import method_row
from hftune.optimization.optimizers import OPTIMIZERS
from hftune.optimization.section import OWN_TRAINING
from hftune.recipe.recipe import Recipe
from hftune.recipe.training_fields import PUSH_FIELDS
from hftune.recipe.training_rules import LIGER_LOSSES
from hftune.training.distributed.launcher import Launch, has_bf16, precision

#: pip's name of a package -> its extra, or what it is imported as.
EXTRAS = {"bitsandbytes": "hftune[bnb]", "schedulefree": "hftune[schedulefree]"}
MODULES = {"torch-optimi": "optimi"}


def training_arguments(recipe: Recipe, launch: Launch) -> TrainingArguments:
    """Build ``TrainingArguments``, which have the last word on their fields.

    Args:
        recipe: What to do.
        launch: What the launcher asked for; a precision in the recipe counts for more.

    Raises:
        RecipeError: They refuse a value, fp16 is asked of a CPU, or there is no such optimizer.
    """
    not_theirs = {*PUSH_FIELDS, *OWN_TRAINING}
    given = {key: value for key, value in recipe.training.items() if key not in not_theirs}
    named = _names_of_our_own(given)
    given["output_dir"] = recipe.training.get("output_dir") or "runs"
    given.setdefault("dataloader_pin_memory", torch.accelerator.is_available())
    given.setdefault("disable_tqdm", True)
    if given.get("eval_strategy", "no") != "no":
        given.setdefault("metric_for_best_model", "loss")  # until the task says its own
    _choose_device(given, recipe, launch)
    _choose_kernels(given, launch)
    try:
        arguments = TrainingArguments(**given, logging_nan_inf_filter=False)
        on_cpu = arguments.device.type == "cpu"
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise RecipeError([f"training: {first_line(error)}"]) from error
    if arguments.fp16 and on_cpu:
        raise RecipeError(["training.fp16: fp16 does nothing on a CPU; leave it out"])
    _settle_names(arguments, named)
    _settle_tf32(arguments)
    if arguments.n_gpu > 1:
        say(f"using one of {arguments.n_gpu} GPUs; --accelerate multi_gpu uses all of them")
        arguments._n_gpu = 1
    return arguments


def _choose_device(given: dict[str, Any], recipe: Recipe, launch: Launch) -> None:
    """Fill in what launcher and machine decide: the CPU, and half precision."""
    if launch.use_cpu:
        given["use_cpu"] = True  # without it the Trainer refuses bf16 where there is no GPU
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not alone and launch.sharding is None and not torch.accelerator.is_available():
        given["use_cpu"] = True  # without it each process would train alone, on all rows
    if launch.mixed_precision is not None:
        os.environ["ACCELERATE_MIXED_PRECISION"] = precision(recipe, launch)
    elif not {"bf16", "fp16"} & given.keys() and not given.get("use_cpu"):
        given["bf16"] = has_bf16()


def _choose_kernels(given: dict[str, Any], launch: Launch) -> None:
    """Fill in what goes with the device and with losses of our own."""
    half = given.get("bf16") or launch.mixed_precision == "bf16"
    if half and is_torch_tf32_available() and not given.get("use_cpu"):
        given.setdefault("tf32", True)  # for the little that autocast leaves in single precision
    if given.get("use_liger_kernel"):  # its losses replace the forward pass of a model
        chosen = given.get("liger_kernel_config") or {}
        given["liger_kernel_config"] = {**dict.fromkeys(LIGER_LOSSES, False), **chosen}


def _settle_tf32(arguments: TrainingArguments) -> None:
    """Say how single precision multiplies; Transformers does so once a process for each answer."""
    if arguments.device.type != "cuda":
        return
    torch.backends.fp32_precision = "tf32" if arguments.tf32 else "ieee"  # type: ignore[attr-defined]
    if arguments.tf32 and arguments.torch_compile:  # whose tuning asks by the older name
        torch.set_float32_matmul_precision("high")


def _names_of_our_own(given: dict[str, Any]) -> dict[str, str]:
    """Take the names out that the lists of Transformers lack, and return them by field.

    A schedule of ours gets a placeholder that asks for no evaluation.
    """
    lists: dict[str, Any] = {"optim": OptimizerNames, "lr_scheduler_type": SchedulerType}
    ours = {
        field: given.pop(field)
        for field, names in lists.items()
        if field in given and given[field] not in {item.value for item in names}
    }
    if "lr_scheduler_type" in ours:
        given.pop("lr_scheduler_kwargs", None)
    return ours


def with_fields(arguments: TrainingArguments, **fields: Any) -> TrainingArguments:
    """Return the arguments with other values in some fields.

    They are copied as they are: made anew they would set up the device once more, and derive
    fields from others that have changed since.
    """
    other = copy.copy(arguments)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def for_device(recipe: Recipe, launch: Launch) -> Recipe:
    """Return the recipe with the defaults that its method has for the device of the run."""
    place = method_row(recipe.method.name).device_defaults
    if place is None:
        return recipe
    on_gpu = launch.gpus > 0 and torch.cuda.is_available()
    quantization, training = named(place)(on_gpu=on_gpu, sharded=launch.sharding is not None)
    model = replace(
        recipe.model, quantization={**quantization, **(recipe.model.quantization or {})}
    )
    return recipe.replaced(model=model, training={**training, **recipe.training})


def _settle_names(arguments: TrainingArguments, ours: dict[str, str]) -> None:
    """Put our own names where trackers and checkpoints read them."""
    if "optim" not in ours:
        _check_optimizer(arguments)
    for field, name in ours.items():
        setattr(arguments, field, name)


def _check_optimizer(arguments: TrainingArguments) -> None:
    """Let the Trainer read ``optim`` and ``optim_args`` now, not when the weights are there."""
    name = str(getattr(arguments.optim, "value", arguments.optim))
    package = OPTIMIZERS[name].package
    if package and not installed(MODULES.get(package, package.replace("-", "_"))):
        raise RecipeError(
            [f"training.optim: {name}: {package} is not installed"],
            hint=f"pip install '{EXTRAS.get(package, package)}'",
        )
    if arguments.optim_target_modules is not None or OPTIMIZERS[name].takes_model:
        return
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ValueError, AttributeError, ImportError, RuntimeError) as error:
        raise RecipeError([f"training.optim: {name}: {first_line(error)}"]) from error


def weight_dtype(recipe: Recipe, arguments: TrainingArguments) -> torch.dtype | Literal["auto"]:
    """Return the type that the weights are loaded in.

    ``auto`` means float32 where weights themselves train, where a CPU would run anything else many
    times slower, and where nothing else is computed in half precision; a frozen base on an
    accelerator keeps the checkpoint's type under mixed precision.
    """
    if recipe.model.dtype != "auto":
        dtype: torch.dtype = getattr(torch, recipe.model.dtype)
        return dtype
    halved = arguments.device.type != "cpu" and mixed_precision(arguments) != "no"
    return "auto" if method_row(recipe.method.name).needs_base and halved else torch.float32


def mixed_precision(arguments: TrainingArguments) -> str:
    """Return the precision in force, the launcher's word included: no, bf16, fp16 or fp8."""
    if arguments.bf16 or arguments.fp16:
        return "bf16" if arguments.bf16 else "fp16"
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
