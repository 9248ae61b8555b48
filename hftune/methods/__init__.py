# SPDX-License-Identifier: Apache-2.0
"""What is trained: a row for each method, those of PEFT's types in :mod:`.peft_types`."""

from typing import TYPE_CHECKING, Any

from hftune.core.registry import MethodRow
from hftune.methods.peft_types import PEFT_TYPES, adapter

if TYPE_CHECKING:
    from hftune.methods.method import Method

METHODS = {
    "full": MethodRow(
        target="hftune.methods.full:Full", summary="Every weight trains.", sharded=True
    ),
    "head_only": MethodRow(
        target="hftune.methods.head_only:HeadOnly",
        summary="Only the classification head trains; the pretrained trunk is frozen.",
        tasks=("text-classification", "token-classification"),
        sharded=True,
    ),
    "freeze": MethodRow(
        target="hftune.methods.freeze:Freeze",
        options="hftune.methods.freeze:FreezeConfig",
        summary="Every weight but frozen layers, embeddings or modules; gradual unfreezing.",
    ),
    "bitfit": MethodRow(
        target="hftune.methods.bitfit:BitFit",
        summary="The biases train, and a classification head.",
    ),
    "qlora": MethodRow(
        target="hftune.methods.qlora:QLora",
        options="peft:LoraConfig",
        summary="LoRA on a base in 4-bit NormalFloat, with the defaults of the paper.",
        saves_adapter=True,
        quantizes=True,
    ),
    "prune": MethodRow(
        target="hftune.methods.prune:Prune",
        options="hftune.methods.prune:PruneConfig",
        summary="The least important weights, neurons or heads go; the rest trains on.",
    ),
    "relora": MethodRow(
        target="hftune.methods.relora:ReLora",
        options="hftune.methods.relora:ReLoraConfig",
        summary="Low-rank updates, merged again and again: their sum has a high rank.",
        rewrites_base=True,
        restarts=True,
    ),
    "probe": MethodRow(
        target="hftune.methods.probe.method:Probe",
        options="hftune.methods.probe.method:ProbeConfig",
        summary="A classical classifier is fitted on the features of the frozen trunk.",
        tasks=("text-classification",),
        saves_adapter=True,
        fitted=True,
        no_merge="is no part of the network",
    ),
}

#: Methods that are fitted on features; no Trainer runs.
FITTED = tuple(name for name, row in METHODS.items() if row.fitted)

#: Methods whose adapter has other shapes at the end than at the start.
CHANGES_SHAPE = tuple(name for name, row in PEFT_TYPES.items() if row.changes_shape)

#: Tuners that hftune adds to PEFT; importing the package of the options tells PEFT of one.
TUNERS = {
    "bottleneck": MethodRow(
        target="hftune.methods.peft:Peft",
        options="hftune.methods.bottleneck:BottleneckConfig",
        summary="Small networks after, or beside, the sublayers (Houlsby, Pfeiffer, parallel).",
        saves_adapter=True,
        no_merge="has an activation between its two matrices",
        sharded=True,
    ),
    "diff_pruning": MethodRow(
        target="hftune.methods.diff_pruning.method:DiffPruning",
        options="hftune.methods.diff_pruning:DiffPruningConfig",
        summary="A difference to every weight, of which half a percent stays.",
        saves_adapter=True,
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
