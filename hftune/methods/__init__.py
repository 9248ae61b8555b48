# SPDX-License-Identifier: Apache-2.0
"""What is trained. PEFT's types need no row: their names come from PEFT itself."""

from hftune.core.rows import Row

METHODS = {
    "full": Row(target="hftune.methods.full:Full", summary="Every weight trains."),
    "head_only": Row(
        target="hftune.methods.head_only:HeadOnly",
        summary="Only the classification head trains; the pretrained trunk is frozen.",
        tasks=("text-classification", "token-classification"),
    ),
}

#: PEFT tuners of our own, which PEFT's mappings list beside its own types.
TUNERS = {
    "diff_pruning": Row(
        target="hftune.methods.diff_pruning.method:DiffPruning",
        summary="A difference to every weight, of which half a percent stays.",
    ),
}

#: Methods whose adapter has other shapes at the end than at the start.
CHANGES_SHAPE = ("adalora",)

PEFT = Row(target="hftune.methods.peft:Peft", summary="A PEFT adapter.")
