# SPDX-License-Identifier: Apache-2.0
"""Table of methods: a row for each, those of PEFT's types in :mod:`.peft_types`."""

from typing import TYPE_CHECKING, Any

from hftune.core.registry import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    AT_LEAST_ZERO,
    FRACTION,
    WITHIN,
    MethodRow,
)
from hftune.methods.peft_types import PEFT_RANGES, PEFT_TYPES, adapter

if TYPE_CHECKING:
    from hftune.methods.method import Method

METHODS = {
    "full": MethodRow(
        target="hftune.methods.full:Full",
        summary="Every weight trains.",
        learning_rate=5e-5,
        learning_rate_writing=2e-5,
        recompute_tested=True,
        fp8=True,
        cheaper="lora",
        sharded=True,
    ),
    "head_only": MethodRow(
        target="hftune.methods.head_only:HeadOnly",
        summary="Only the classification head trains; the pretrained trunk is frozen.",
        labels=("class", "token"),
        trains="head",
        learning_rate=1e-3,
        sharded=True,
    ),
    "freeze": MethodRow(
        target="hftune.methods.freeze:Freeze",
        options="hftune.methods.freeze:FreezeConfig",
        summary="Every weight but frozen layers, embeddings or modules; gradual unfreezing.",
        learning_rate=5e-5,
        learning_rate_writing=2e-5,
        ranges={
            "head_only_rate": ABOVE_ZERO,
            "head_only_steps": AT_LEAST_ZERO,
            "unfreeze_every": ABOVE_ZERO,
        },
        frozen_bottom=True,
        recompute_tested=True,
    ),
    "bitfit": MethodRow(
        target="hftune.methods.bitfit:BitFit",
        summary="The biases train, and a classification head.",
        trains="biases",
        learning_rate=1e-3,
        frozen_bottom=True,
        recompute_tested=True,
    ),
    "qlora": MethodRow(
        target="hftune.methods.qlora:QLora",
        options="peft:LoraConfig",
        summary="LoRA on a base in 4-bit NormalFloat, with the defaults of the paper.",
        saves="adapter",
        trains="adapter",
        learning_rate=2e-4,
        defaults={
            "r": 64,
            "lora_alpha": 16,
            "lora_dropout": 0.1,
            "target_modules": "all-linear",
        },
        training_defaults={
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 0.03,
            "max_grad_norm": 0.3,
        },
        quantization={
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
        },
        device_defaults="hftune.methods.qlora:device_defaults",
        ranges=PEFT_RANGES,
        has_lora_pairs=True,
        recompute_tested=True,
    ),
    "prune": MethodRow(
        target="hftune.methods.prune:Prune",
        options="hftune.methods.prune:PruneConfig",
        summary="The least important weights, neurons or heads go; the rest trains on.",
        learning_rate=5e-5,
        learning_rate_writing=2e-5,
        sets_weights=True,
        settles_late=True,
    ),
    "relora": MethodRow(
        target="hftune.methods.relora:ReLora",
        options="hftune.methods.relora:ReLoraConfig",
        summary="Low-rank updates, merged again and again: their sum has a high rank.",
        trains="adapter",
        defaults={"target_modules": "all-linear"},
        ranges={
            **PEFT_RANGES,
            "merge_every": ABOVE_ZERO,
            "reset_ratio": {**AT_LEAST_ZERO, "maximum": 1},
            "rewarm_steps": AT_LEAST_ZERO,
            "warm_start_steps": AT_LEAST_ZERO,
        },
        sets_weights=True,
        recompute_tested=True,
        rewrites_base=True,
        restarts=True,
    ),
    "probe": MethodRow(
        target="hftune.methods.probe.method:Probe",
        options="hftune.methods.probe.method:ProbeConfig",
        summary="A classical classifier is fitted on the features of the frozen trunk.",
        labels=("class",),
        saves="classifier",
        trains="features",
        ranges={"cv": {"minimum": 2}},
        no_merge="is no part of the network",
        no_images="pools the tokens of a text",
    ),
}

#: Tuners that hftune adds to PEFT; importing the package of the options tells PEFT of one.
TUNERS = {
    "bottleneck": adapter(
        "Small networks after, or beside, the sublayers (Houlsby, Pfeiffer, parallel).",
        options="hftune.methods.bottleneck:BottleneckConfig",
        ranges={"dropout": FRACTION, "reduction_factor": AT_LEAST_ONE},
        no_merge="has an activation between its two matrices",
        sharded=True,
    ),
    "diff_pruning": adapter(
        "A difference to every weight, of which half a percent stays.",
        "hftune.methods.diff_pruning.method:DiffPruning",
        options="hftune.methods.diff_pruning:DiffPruningConfig",
        ranges={
            "target_sparsity": WITHIN,
            "projection_ratio": {**ABOVE_ZERO, "maximum": 1},
            "penalty_weight": AT_LEAST_ZERO,
            "gate_lr_ratio": ABOVE_ZERO,
            "finishing_lr_ratio": ABOVE_ZERO,
        },
        sets_weights=True,
        settles_late=True,
        draws=True,
    ),
}

#: A PEFT type that is newer than the table.
PEFT = adapter("A PEFT adapter.")


#: Every method by name.
ROWS = {**METHODS, **TUNERS, **PEFT_TYPES}


def method_row(name: str) -> MethodRow:
    """Return the row of a method."""
    return ROWS.get(name, PEFT)


def make_method(name: str, options: dict[str, Any]) -> "Method":
    """Return the method of a name; tuners and PEFT types share one class and are told theirs.

    Args:
        name: As a recipe has it.
        options: What else stands under ``method:``.
    """
    target = method_row(name).resolve()
    method: Method = target(**options) if name in METHODS else target(name, options)
    return method
