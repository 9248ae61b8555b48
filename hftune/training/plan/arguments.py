# SPDX-License-Identifier: Apache-2.0
"""Build ``TrainingArguments`` from a recipe, and return the precision in force."""

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
    """Build ``TrainingArguments``; their own checks of their fields apply.

    Args:
        recipe: The recipe.
        launch: The launcher's settings; a precision in the recipe overrides theirs.

    Raises:
        RecipeError: A value is invalid, a CPU should train in fp16, or the optimizer is unknown.
    """
    not_theirs = {*PUSH_FIELDS, *OWN_TRAINING}
    given = {key: value for key, value in recipe.training.items() if key not in not_theirs}
    named = _names_of_our_own(given)
    given["output_dir"] = recipe.training.get("output_dir") or "runs"
    given.setdefault("dataloader_pin_memory", torch.accelerator.is_available())
    given.setdefault("disable_tqdm", True)
    if given.get("eval_strategy", "no") != "no":
        given.setdefault("metric_for_best_model", "loss")  # until the task sets its own
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
    """Set the fields that launcher and machine decide: CPU and half precision."""
    if launch.use_cpu:
        given["use_cpu"] = True  # otherwise the Trainer refuses bf16 without a GPU
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not alone and launch.sharding is None and not torch.accelerator.is_available():
        given["use_cpu"] = True  # otherwise each process would train alone, on all rows
    if launch.mixed_precision is not None:
        os.environ["ACCELERATE_MIXED_PRECISION"] = precision(recipe, launch)
    elif not {"bf16", "fp16"} & given.keys() and not given.get("use_cpu"):
        given["bf16"] = has_bf16()


def _choose_kernels(given: dict[str, Any], launch: Launch) -> None:
    """Set tf32, and keep Liger's losses off, because hftune computes its own."""
    half = given.get("bf16") or launch.mixed_precision == "bf16"
    if half and is_torch_tf32_available() and not given.get("use_cpu"):
        given.setdefault("tf32", True)  # for the operations that autocast leaves in float32
    if given.get("use_liger_kernel"):  # its losses replace the forward pass of a model
        chosen = given.get("liger_kernel_config") or {}
        given["liger_kernel_config"] = {**dict.fromkeys(LIGER_LOSSES, False), **chosen}


def _settle_tf32(arguments: TrainingArguments) -> None:
    """Set the precision of float32 products; Transformers would not reset it within a process."""
    if arguments.device.type != "cuda":
        return
    torch.backends.fp32_precision = "tf32" if arguments.tf32 else "ieee"  # type: ignore[attr-defined]
    if arguments.tf32 and arguments.torch_compile:  # the compiler reads the older setting
        torch.set_float32_matmul_precision("high")


def _names_of_our_own(given: dict[str, Any]) -> dict[str, str]:
    """Remove the names that Transformers does not know, and return them by field.

    Transformers' default then stands in for a schedule of hftune.
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


def with_fields(arguments: TrainingArguments, **fields: object) -> TrainingArguments:
    """Return a copy of the arguments with other values in some fields.

    It is a plain copy: the constructor would set up the device again, and derive fields from
    others that have changed since.
    """
    other = copy.copy(arguments)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def for_device(recipe: Recipe, launch: Launch) -> Recipe:
    """Return the recipe with its method's defaults for the device of the run."""
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
    """Set names of hftune in the fields that trackers and checkpoints read."""
    if "optim" not in ours:
        _check_optimizer(arguments)
    for field, name in ours.items():
        setattr(arguments, field, name)


def _check_optimizer(arguments: TrainingArguments) -> None:
    """Let the Trainer check ``optim`` and ``optim_args`` now, before weights are loaded."""
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
    """Return the dtype of the loaded weights.

    ``auto`` keeps the checkpoint's dtype for a frozen base on an accelerator with mixed precision.
    Otherwise it means float32: for weights that train themselves, on a CPU, which is many times
    slower in other types, and without mixed precision.
    """
    if recipe.model.dtype != "auto":
        dtype: torch.dtype = getattr(torch, recipe.model.dtype)
        return dtype
    halved = arguments.device.type != "cpu" and mixed_precision(arguments) != "no"
    return "auto" if method_row(recipe.method.name).needs_base and halved else torch.float32


def mixed_precision(arguments: TrainingArguments) -> str:
    """Return the precision in force, also if the launcher sets it: no, bf16, fp16 or fp8."""
    if arguments.bf16 or arguments.fp16:
        return "bf16" if arguments.bf16 else "fp16"
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
