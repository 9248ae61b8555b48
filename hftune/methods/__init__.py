# SPDX-License-Identifier: Apache-2.0
"""Table of methods: a row for each.

Rows of PEFT's types stand in :mod:`.peft_types`, those of tuners that hftune adds to PEFT in
:mod:`.tuners`. A method with rules of its own keeps its row in its folder.
"""

from typing import TYPE_CHECKING, Any

from hftune.core.registry import MethodRow
from hftune.methods.freeze.row import FREEZE
from hftune.methods.peft_row import adapter
from hftune.methods.peft_types import PEFT_TYPES
from hftune.methods.probe.row import PROBE
from hftune.methods.qlora.row import QLORA
from hftune.methods.relora.row import RELORA
from hftune.methods.tuners import TUNERS

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
    "freeze": FREEZE,
    "bitfit": MethodRow(
        target="hftune.methods.bitfit:BitFit",
        summary="The biases train, and a classification head.",
        trains="biases",
        learning_rate=1e-3,
        frozen_bottom=True,
        recompute_tested=True,
    ),
    "qlora": QLORA,
    "prune": MethodRow(
        target="hftune.methods.prune:Prune",
        options="hftune.methods.prune:PruneConfig",
        summary="The least important weights, neurons or heads go; the rest trains on.",
        learning_rate=5e-5,
        learning_rate_writing=2e-5,
        sets_weights=True,
        settles_late=True,
    ),
    "relora": RELORA,
    "probe": PROBE,
}

#: A PEFT type that is newer than the table.
PEFT = adapter("A PEFT adapter.")


#: Every method by name.
ROWS = {**METHODS, **TUNERS, **PEFT_TYPES}


def method_row(name: str) -> MethodRow:
    """Return the row of a method.

    Example:
        >>> method_row("lora").saves, method_row("full").saves
        ('adapter', 'model')
    """
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
