# SPDX-License-Identifier: Apache-2.0
"""Name the layers of sharded models, gather their weights and describe their settings."""

import os
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from hftune.core.errors import HftuneError


def is_sharded(accelerator: Accelerator) -> bool:
    """Tell whether each process holds only a part of the model."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def distribution(accelerator: Accelerator) -> dict[str, object]:
    """Describe the distribution over processes, from the Accelerator's state."""
    kind = accelerator.distributed_type
    facts: dict[str, object] = {
        "type": str(kind.value),
        "machines": int(os.environ.get("GROUP_WORLD_SIZE", "1")),
    }
    if kind == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        policy = plugin.mixed_precision_policy
        facts |= {
            "type": f"FSDP{plugin.fsdp_version}",
            "reshard_after_forward": plugin.reshard_after_forward,
            "cpu_offload": type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy",
            "cpu_ram_efficient_loading": plugin.cpu_ram_efficient_loading,
            "state_dict_type": plugin.state_dict_type.name,
            "layers": plugin.transformer_cls_names_to_wrap,
            "param_dtype": None if policy is None else _name(policy.param_dtype),
            "reduce_dtype": None if policy is None else _name(policy.reduce_dtype),
        }
    elif kind == DistributedType.DEEPSPEED:
        zero = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        facts |= {
            "zero_stage": zero["stage"],
            "offload_optimizer_device": zero.get("offload_optimizer", {}).get("device", "none"),
            "offload_param_device": zero.get("offload_param", {}).get("device", "none"),
        }
    return facts


def precision_in_force(accelerator: Accelerator) -> dict[str, object]:
    """Return the mixed precision, and the backend of fp8."""
    precision = accelerator.mixed_precision
    backend = {"fp8_backend": accelerator.fp8_backend.value} if precision == "fp8" else {}
    return {"mixed_precision": precision, **backend}


def describe_environment(environment: dict[str, Any]) -> str:
    """Return the distribution and precision of ``environment.json`` as a comment for a recipe.

    Example:
        >>> describe_environment(
        ...     {"distribution": {"type": "FSDP2"}, "processes": 2, "mixed_precision": "bf16"}
        ... )
        'in force: FSDP2, 2 processes, mixed precision bf16'
    """
    kind, processes = environment["distribution"]["type"], environment["processes"]
    number = "1 process" if processes == 1 else f"{processes} processes"
    return f"in force: {kind}, {number}, mixed precision {environment['mixed_precision']}"


def name_layers(accelerator: Accelerator, model: Any) -> None:
    """Set the layer classes that FSDP2 wraps, unless its config names them.

    Accelerate would wrap every class in ``_no_split_modules``. In encoders these include the
    embeddings; Accelerate shards the embeddings separately, and then fails.

    Raises:
        HftuneError: The model does not name its layers.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is not None:
        return
    embeddings = model.get_input_embeddings()
    kept_whole = set(model._no_split_modules or ())
    parts = [part for part in model.modules() if type(part).__name__ in kept_whole]
    with_embeddings = {type(part) for part in parts if embeddings in set(part.modules())}
    layers = sorted({type(part).__name__ for part in parts if type(part) not in with_embeddings})
    if not layers:
        raise HftuneError(
            f"FSDP2: {type(model).__name__} does not name its layers",
            hint="set fsdp_transformer_layer_cls_to_wrap in a config of your own",
        )
    plugin.transformer_cls_names_to_wrap = layers


def full_state_dict(accelerator: Accelerator, model: Any) -> dict[str, Tensor] | None:
    """Gather the state dict of a sharded model; every process takes part.

    Args:
        accelerator: The Accelerator that sharded the model.
        model: The wrapped model.

    Returns:
        The state dict on the main process, for an adapter only its trained weights, and an empty
        one on the others; None if every process holds the whole model.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        whole: dict[str, Tensor] = accelerator.get_state_dict(model)
        return whole
    if accelerator.distributed_type != DistributedType.FSDP:
        return None
    return gather_state_dict(model)


def gather_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Gather the state dict of a model of ``fully_shard``; see :func:`full_state_dict`."""
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=isinstance(model, PeftModel)
    )
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    # Tied weights are gathered as copies, which save_pretrained would save as separate weights.
    tied: Any = {} if isinstance(model, PeftModel) else getattr(model, "all_tied_weights_keys", {})
    return {name: value for name, value in weights.items() if name not in tied}


def _name(dtype: Any) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")
