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
    "relora": Row(
        target="hftune.methods.relora:ReLora",
        options="hftune.methods.relora:ReLoraConfig",
        summary="Low-rank updates, merged again and again: their sum has a high rank.",
    ),
    "probe": Row(
        target="hftune.methods.probe.method:Probe",
        options="hftune.methods.probe.method:ProbeConfig",
        summary="A classical classifier is fitted on the features of the frozen trunk.",
        tasks=("text-classification",),
    ),
}

#: Methods that are fitted on features; no Trainer runs.
FITTED = ("probe",)

#: Methods whose adapter has other shapes at the end than at the start.
CHANGES_SHAPE = ("adalora",)

PEFT = Row(target="hftune.methods.peft:Peft", summary="A PEFT adapter.")
