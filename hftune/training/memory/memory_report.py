# SPDX-License-Identifier: Apache-2.0
"""Print device, precision, optimizer and estimated memory of a run before weights are loaded.

If the run would not fit a GPU, activations are recomputed in the backward pass, provided that this
suffices: it changes no result. All other ways to save memory are only proposed.
"""

import os

import numpy as np
import torch
from torch import nn

from hftune.core.console import say, warn
from hftune.core.cost import StepCost
from hftune.core.processes import on_main_process
from hftune.distillation.teaching import teacher_cost
from hftune.methods import method_row
from hftune.training.build import teaching_of
from hftune.training.memory.estimate import MemoryEstimate, estimate_memory
from hftune.training.plan.arguments import mixed_precision, weight_dtype
from hftune.training.plan.plan import Plan
from hftune.training.plan.token_budget import always_padded

MIB = 2**20
#: Largest estimated share of a GPU's memory: libraries and fragmentation need the rest.
USABLE = 0.9


def print_memory_report(plan: Plan) -> Plan:
    """Print device, precision, optimizer and memory.

    Returns:
        The plan; it recomputes activations if the run would not fit a GPU otherwise.
    """
    arguments = plan.settings.arguments
    half = mixed_precision(arguments)
    say(
        f"computes on: {_device_name(plan)}, {'float32' if half == 'no' else half}"
        f"{', tf32' if arguments.tf32 else ''}; optimizer: "
        f"{getattr(arguments.optim, 'value', arguments.optim)}"
    )
    # One process decides for all: they must recompute the same activations.
    estimate, available = plan_memory(plan), on_main_process(arguments, lambda: device_memory(plan))
    if estimate is None:
        say("memory for training: not known before the weights are there, with this method")
        return plan
    if estimate.total > available and (smaller := _recomputing(plan, available)) is not None:
        say("activations are recomputed in the backward pass, or the run would not fit the GPU")
        plan = smaller
        estimate = plan_memory(plan) or estimate
    meta_model = plan.objective.meta_model
    if meta_model is not None and (runs := step_cost(plan, meta_model).runs) > 1:
        say(f"each step runs a model over the batch {runs:g} times")
    say(
        f"memory for training, about: {estimate.total / MIB:,.0f} MiB ({_parts(estimate)}) of "
        f"{available / MIB:,.0f}"
    )
    if estimate.total > available:
        warn(f"the run may not fit; less is taken by {_remedies(plan, estimate)}")
    return plan


def _parts(estimate: MemoryEstimate) -> str:
    """Return the parts as text; gradients that replace activations come last."""
    names = ["weights", "optimizer", "activations", "logits"]
    names.insert(1 if estimate.accumulates else len(names), "gradients")
    sizes = {name: getattr(estimate, name) for name in names}
    said = [f"{name} {size / MIB:,.0f}" for name, size in sizes.items() if size]
    if not estimate.accumulates and estimate.gradients and len(said) > 1:
        said[-1] = f"then {said[-1]}"
    return ", ".join(said)


def plan_memory(plan: Plan) -> MemoryEstimate | None:
    """Estimate the memory of a plan's largest batch; return None if that needs weights."""
    if plan.objective.meta_model is None:
        return None
    dtype = weight_dtype(plan.settings.recipe, plan.settings.arguments)
    quantization = plan.settings.recipe.model.quantization or {}
    if dtype == "auto":
        dtype = getattr(plan.pretrained.config, "dtype", None) or torch.float32
    per_weight = float(dtype.itemsize)
    if quantization.get("load_in_4bit"):  # plus a constant for each 64 weights
        doubly = quantization.get("bnb_4bit_use_double_quant")
        per_weight = 0.516 if doubly else 0.5625
    elif quantization.get("load_in_8bit"):
        per_weight = 1.0
    arguments = plan.settings.arguments
    half = mixed_precision(arguments)
    rows, length = largest_batch(plan)
    return estimate_memory(
        plan.objective.meta_model,
        rows=rows,
        length=length,
        cost=step_cost(plan, plan.objective.meta_model),
        bytes_per_weight=per_weight,
        mixed_precision=half != "no",
        recompute=plan.context().gradient_checkpointing,
        accumulates=arguments.gradient_accumulation_steps * arguments.world_size > 1,
    )


def step_cost(plan: Plan, meta_model: nn.Module) -> StepCost:
    """Return the cost of a step: the sum over the techniques of the run.

    Args:
        plan: The run.
        meta_model: The model without weights after the method's changes.
    """
    settings, objective = plan.settings, plan.objective
    cost = (
        objective.loss.step_cost()
        + objective.method.step_cost(meta_model)
        + settings.optimization.step_cost()
        + settings.regularization.step_cost(meta_model)
        + teacher_cost(objective.loss, teaching_of(plan))
    )
    arguments = settings.arguments
    whole = mixed_precision(arguments) == "fp16" or arguments.torch_compile
    return cost.with_whole_logits() if whole or settings.launch.sharding else cost


def largest_batch(plan: Plan) -> tuple[int, int]:
    """Return the rows of the largest batch, and the tokens of each row in the layers.

    Padded rows are as long as the longest row. For packed rows the length is an average over the
    batch with the most tokens in a random order.
    """
    lengths = np.asarray(plan.splits.train.sizes)
    if plan.pretrained.max_length is not None:
        lengths = np.minimum(lengths, plan.pretrained.max_length)
    longest, budget = int(lengths.max()), plan.settings.recipe.data.token_budget
    if budget is not None:
        return max(budget // longest, 1), longest
    rows = min(plan.settings.arguments.per_device_train_batch_size, len(lengths))
    assert plan.objective.meta_model is not None
    if plan.settings.launch.sharding or always_padded(plan.settings, plan.objective.meta_model):
        return rows, longest
    if plan.settings.arguments.train_sampling_strategy == "group_by_length":
        largest = np.sort(lengths)[-rows:].sum()
    else:
        order = np.random.default_rng(plan.settings.arguments.seed).permutation(len(lengths))
        whole = order[: len(order) // rows * rows].reshape(-1, rows)
        largest = lengths[whole].sum(1).max()
    return rows, -int(-largest // rows)


def device_memory(plan: Plan) -> int:
    """Return the bytes of the device that a run may use."""
    if plan.settings.arguments.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(plan.settings.arguments.device)
        return int(free * USABLE)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _device_name(plan: Plan) -> str:
    device = plan.settings.arguments.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _recomputing(plan: Plan, available: int) -> Plan | None:
    """Return the plan with recomputed activations, if that makes the run fit a GPU."""
    arguments, said = plan.settings.arguments, plan.settings.recipe.training
    decided = {"activation_checkpointing", "gradient_checkpointing"} & said.keys()
    tested = method_row(plan.settings.recipe.method.name).recompute_tested
    if decided or arguments.device.type != "cuda" or not tested:
        return None
    smaller = plan.with_arguments(activation_checkpointing=True)
    estimate = plan_memory(smaller)
    return smaller if estimate is not None and estimate.total <= available else None


def _remedies(plan: Plan, estimate: MemoryEstimate) -> str:
    """Return settings that save memory, the largest saving first."""
    arguments = plan.settings.arguments
    size = arguments.per_device_train_batch_size
    saved = []
    if not plan.context().gradient_checkpointing:
        saved.append((estimate.activations, "training.activation_checkpointing: true"))
    if size > 1:
        smaller = (
            f"training.per_device_train_batch_size: {size // 2} with gradient_accumulation_steps: "
            f"{2 * arguments.gradient_accumulation_steps}"
        )
        saved.append(((estimate.activations + estimate.logits) // 2, smaller))
    if (cheaper := method_row(plan.settings.recipe.method.name).cheaper) is not None:
        saved.append((estimate.optimizer + estimate.gradients, f"method: {cheaper}"))
        paged = "training.optim: paged_adamw_8bit"
        if arguments.device.type == "cuda":
            saved.append((estimate.optimizer * 3 // 4, paged))
    return "; ".join(name for _, name in sorted(saved, reverse=True))
