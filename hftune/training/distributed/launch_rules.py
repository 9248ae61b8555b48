# SPDX-License-Identifier: Apache-2.0
"""Rules about launching: settings of a launcher that hftune cannot follow.

They are checked before anything is loaded; ``docs/distributed.md`` lists their sentences.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch

from hftune.core.errors import RecipeError
from hftune.core.optimization_rows import OptimizerRow
from hftune.losses import LOSSES
from hftune.methods import ROWS, method_row
from hftune.optimization.optim_args import values_of
from hftune.optimization.optimizers import DEFAULT as DEFAULT_OPTIMIZER
from hftune.optimization.optimizers import OPTIMIZERS
from hftune.recipe.recipe import Recipe
from hftune.recipe.training_rules import FITTED
from hftune.regularization import REGULARIZATIONS
from hftune.training.distributed.launcher import Launch, has_bf16, precision

SHARDED_METHODS = tuple(name for name, row in ROWS.items() if row.sharded)
SHARDED_OPTIMIZERS = tuple(name for name, row in OPTIMIZERS.items() if row.sharded)
#: Optimizers that FSDP2 cannot resume, because they have no state without a certain option.
WITHOUT_STATE = ", ".join(
    f"plain {name} is: say {row.stateless_without}=0.9"
    for name, row in OPTIMIZERS.items()
    if row.stateless_without
)
CLOSURE = ", ".join(name for name, row in OPTIMIZERS.items() if row.closure)
#: Keys that use single weights; untested if each process holds only a part of a weight.
NOT_SHARDED = ("layer_decay", "param_groups", "loraplus_lr_ratio", "max_grad_value",
               "log_grad_norms")  # fmt: skip
#: Such keys of ``regularization``.
REGULARIZATION_NOT_SHARDED = tuple(
    key for key, row in REGULARIZATIONS.items() if row.sharded == "untested"
)
FP8_CAPABILITY = (8, 9)  # Ada and Hopper were the first with fp8 matrix units


@dataclass(frozen=True)
class LaunchRule:
    """A rule about launching.

    Attributes:
        key: The key in the error, of the recipe or of Accelerate's config.
        says: The sentence in the error and in the docs.
        broken: Tells whether a recipe breaks the rule under a launcher.
    """

    key: str
    says: str
    broken: Callable[[Recipe, Launch], bool]


def _fsdp(launch: Launch) -> bool:
    return launch.sharding == "fsdp"


def _fp8(launch: Launch) -> bool:
    return launch.mixed_precision == "fp8"


def _training(recipe: Recipe, *keys: str) -> bool:
    return any(recipe.training.get(key) for key in keys)


def _offloads(recipe: Recipe) -> bool:
    return bool((recipe.training.get("activation_checkpointing_kwargs") or {}).get("offload"))


def _bits(recipe: Recipe, switch: str) -> bool:
    return bool((recipe.model.quantization or {}).get(switch))


def _optimizer(recipe: Recipe) -> OptimizerRow:
    return OPTIMIZERS[recipe.training.get("optim", DEFAULT_OPTIMIZER)]


def _is_stateless(recipe: Recipe) -> bool:
    """Tell whether the optimizer keeps nothing from one step to the next."""
    option = _optimizer(recipe).stateless_without
    return option is not None and not values_of(recipe.training.get("optim_args")).get(option)


def _storage_is_cast(recipe: Recipe, launch: Launch) -> bool:
    """Tell whether sharding would cast the packed bytes of 4-bit weights like numbers."""
    storage = (recipe.model.quantization or {}).get("bnb_4bit_quant_storage", "uint8")
    gathered_in = {"bf16": "bfloat16", "fp16": "float16"}.get(precision(recipe, launch))
    return storage != recipe.model.dtype or gathered_in not in (None, storage)


def _too_old_for_fp8() -> bool:
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() < FP8_CAPABILITY


def _computes_in_half(recipe: Recipe, launch: Launch) -> bool:
    """Tell whether activations have half precision, by the dtype of the weights or by autocast."""
    if recipe.model.dtype in ("bfloat16", "float16") or precision(recipe, launch) != "no":
        return True
    said = launch.mixed_precision is not None or {"bf16", "fp16"} & recipe.training.keys()
    return not said and has_bf16()


RULES = (
    LaunchRule(
        "model.attn_implementation",
        "flash_attention_2 and flex_attention train on a GPU alone; leave it out",
        lambda recipe, launch: (
            launch.gpus == 0
            and recipe.model.attn_implementation in ("flash_attention_2", "flex_attention")
        ),
    ),
    LaunchRule(
        "model.attn_implementation",
        "flash_attention_2 computes in half precision: training.bf16: true",
        lambda recipe, launch: (
            launch.gpus > 0
            and recipe.model.attn_implementation == "flash_attention_2"
            and not _computes_in_half(recipe, launch)
        ),
    ),
    LaunchRule(
        "training.use_liger_kernel",
        "its kernels need a GPU; leave it out",
        lambda recipe, launch: launch.gpus == 0 and _training(recipe, "use_liger_kernel"),
    ),
    LaunchRule(
        "training.activation_checkpointing_kwargs",
        "offload moves activations from a GPU to the CPU's memory, where they are; leave it out",
        lambda recipe, launch: launch.gpus == 0 and _offloads(recipe),
    ),
    LaunchRule(
        "training.fsdp, training.deepspeed",
        "the launcher says how a model is sharded: --accelerate fsdp2",
        lambda recipe, launch: _training(recipe, "fsdp", "fsdp_config", "deepspeed"),
    ),
    LaunchRule(
        "--accelerate",
        "sharding needs GPUs; on a CPU Accelerate would leave the model whole without a word",
        lambda recipe, launch: launch.sharding is not None and launch.gpus == 0,
    ),
    LaunchRule(
        "num_processes",
        "more processes than this machine has GPUs: say --num-processes",
        lambda recipe, launch: 0 < launch.gpus < launch.processes,
    ),
    LaunchRule(
        "parallelism_config",
        "tensor, context and sequence parallelism are not supported",
        lambda recipe, launch: launch.has("ACCELERATE_USE_PARALLELISM_CONFIG"),
    ),
    LaunchRule(
        "fsdp_version",
        "must be 2; version 1 is not supported",
        lambda recipe, launch: _fsdp(launch) and launch.settings.get("FSDP_VERSION") != "2",
    ),
    LaunchRule(
        "fsdp_state_dict_type",
        "must be FULL_STATE_DICT: checkpoints in shards are indexed by a pickle",
        lambda recipe, launch: (
            _fsdp(launch) and launch.settings.get("FSDP_STATE_DICT_TYPE") != "FULL_STATE_DICT"
        ),
    ),
    LaunchRule(
        "fsdp_activation_checkpointing",
        "set training.gradient_checkpointing in the recipe instead, which the method knows of",
        lambda recipe, launch: _fsdp(launch) and launch.has("FSDP_ACTIVATION_CHECKPOINTING"),
    ),
    LaunchRule(
        "method",
        f"sharded, only these are tested: {', '.join(SHARDED_METHODS)}",
        lambda recipe, launch: (
            launch.sharding is not None and not method_row(recipe.method.name).sharded
        ),
    ),
    LaunchRule(
        "num_processes",
        f"a {FITTED} is fitted by one process",
        lambda recipe, launch: launch.processes > 1 and method_row(recipe.method.name).fitted,
    ),
    LaunchRule(
        "training.optim",
        f"sharded, only these are tested: {', '.join(SHARDED_OPTIMIZERS)}",
        lambda recipe, launch: launch.sharding is not None and not _optimizer(recipe).sharded,
    ),
    LaunchRule(
        "training",
        f"not tested on a sharded model: {', '.join(NOT_SHARDED)}",
        lambda recipe, launch: launch.sharding is not None and _training(recipe, *NOT_SHARDED),
    ),
    LaunchRule(
        "regularization.weight_averaging",
        "an average of sharded weights is not supported; take --accelerate multi_gpu",
        lambda recipe, launch: (
            launch.sharding is not None and recipe.regularization.weight_averaging is not None
        ),
    ),
    LaunchRule(
        "regularization",
        "penalties on sharded weights are not supported; take --accelerate multi_gpu",
        lambda recipe, launch: (
            launch.sharding is not None and bool(recipe.regularization.penalties)
        ),
    ),
    LaunchRule(
        "regularization",
        f"not tested on a sharded model: {', '.join(REGULARIZATION_NOT_SHARDED)}",
        lambda recipe, launch: (
            launch.sharding is not None
            and any(getattr(recipe.regularization, key) for key in REGULARIZATION_NOT_SHARDED)
        ),
    ),
    LaunchRule(
        "regularization.sam",
        "the scaling of fp16 allows one gradient a step, and sam needs two; take bf16",
        lambda recipe, launch: (
            recipe.regularization.sam is not None and precision(recipe, launch) == "fp16"
        ),
    ),
    LaunchRule(
        "loss",
        f"{', '.join(name for name, row in LOSSES.items() if not row.sharded)} is not tested on a "
        "sharded model; take --accelerate multi_gpu",
        lambda recipe, launch: (
            launch.sharding is not None
            and recipe.loss is not None
            and not LOSSES[recipe.loss.name].sharded
        ),
    ),
    LaunchRule(
        "distillation",
        "a teacher beside a sharded model is not supported; take --accelerate multi_gpu",
        lambda recipe, launch: launch.sharding is not None and recipe.distillation is not None,
    ),
    LaunchRule(
        "data.token_budget",
        "not tested on a sharded model; take --accelerate multi_gpu",
        lambda recipe, launch: launch.sharding is not None and recipe.data.token_budget is not None,
    ),
    LaunchRule(
        "initialization",
        "sharded weights cannot be drawn; take --accelerate multi_gpu",
        lambda recipe, launch: launch.sharding is not None and recipe.initialization.is_set,
    ),
    LaunchRule(
        "training.optim",
        f"{CLOSURE} runs a line search on the loss, and each process would see a different loss",
        lambda recipe, launch: launch.processes > 1 and _optimizer(recipe).closure,
    ),
    LaunchRule(
        "training.optim_args",
        f"FSDP2 cannot resume an optimizer without state, as {WITHOUT_STATE}",
        lambda recipe, launch: _fsdp(launch) and _is_stateless(recipe),
    ),
    LaunchRule(
        "training.auto_find_batch_size",
        "a sharded model cannot start again with a smaller batch",
        lambda recipe, launch: (
            launch.sharding is not None and _training(recipe, "auto_find_batch_size")
        ),
    ),
    LaunchRule(
        "model.quantization",
        "8-bit weights cannot be sharded; take load_in_4bit or --accelerate multi_gpu",
        lambda recipe, launch: launch.sharding is not None and _bits(recipe, "load_in_8bit"),
    ),
    LaunchRule(
        "model.quantization",
        "DeepSpeed with 4-bit weights is not supported; take --accelerate fsdp2_qlora",
        lambda recipe, launch: launch.sharding == "deepspeed" and _bits(recipe, "load_in_4bit"),
    ),
    LaunchRule(
        "model.quantization.bnb_4bit_quant_storage",
        "FSDP2 gathers 4-bit weights in the type of the parameters: model.dtype and "
        "bnb_4bit_quant_storage must both be the type of the mixed precision, such as bfloat16",
        lambda recipe, launch: (
            _fsdp(launch) and _bits(recipe, "load_in_4bit") and _storage_is_cast(recipe, launch)
        ),
    ),
    LaunchRule(
        "fsdp_cpu_ram_efficient_loading",
        "must be false: with it only the first process has the head that a checkpoint lacks",
        lambda recipe, launch: _fsdp(launch) and launch.has("FSDP_CPU_RAM_EFFICIENT_LOADING"),
    ),
    LaunchRule(
        "--mixed-precision",
        "the recipe sets training.bf16 or training.fp16, the launcher says fp8",
        lambda recipe, launch: _fp8(launch) and _training(recipe, "bf16", "fp16"),
    ),
    LaunchRule(
        "--mixed-precision",
        "fp8 needs torchao: pip install torchao",
        lambda recipe, launch: _fp8(launch) and find_spec("torchao") is None,
    ),
    LaunchRule(
        "--mixed-precision",
        "fp8 needs a GPU of compute capability 8.9 or newer (Ada, Hopper)",
        lambda recipe, launch: _fp8(launch) and (launch.gpus == 0 or _too_old_for_fp8()),
    ),
    LaunchRule(
        "--mixed-precision",
        "fp8 multiplies the weights that train; an adapter's are too narrow: take method: full",
        lambda recipe, launch: _fp8(launch) and not method_row(recipe.method.name).fp8,
    ),
    LaunchRule(
        "--mixed-precision",
        "fp8 with DeepSpeed is not supported; take --accelerate fsdp2",
        lambda recipe, launch: _fp8(launch) and launch.sharding == "deepspeed",
    ),
)


def check_launch(recipe: Recipe, own_model: bool = False) -> Launch:
    """Return the launcher's settings.

    Args:
        recipe: The recipe.
        own_model: Whether the user's own model replaces the recipe's model and method.

    Raises:
        RecipeError: The recipe breaks a rule under these settings.
    """
    launch = Launch.of_this_process()
    if launch.use_cpu or _training(recipe, "use_cpu"):
        launch = replace(launch, gpus=0)
    rules = [rule for rule in RULES if not (own_model and rule.key == "method")]
    problems = [f"{rule.key}: {rule.says}" for rule in rules if rule.broken(recipe, launch)]
    if problems:
        raise RecipeError(problems)
    return launch
