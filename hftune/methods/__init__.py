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
    "freeze": Row(
        target="hftune.methods.freeze:Freeze",
        options="hftune.methods.freeze:FreezeConfig",
        summary="Every weight but frozen layers, embeddings or modules; gradual unfreezing.",
    ),
    "bitfit": Row(
        target="hftune.methods.bitfit:BitFit",
        summary="The biases train, and a classification head.",
    ),
    "qlora": Row(
        target="hftune.methods.qlora:QLora",
        options="peft:LoraConfig",
        summary="LoRA on a base in 4-bit NormalFloat, with the defaults of the paper.",
    ),
    "prune": Row(
        target="hftune.methods.prune:Prune",
        options="hftune.methods.prune:PruneConfig",
        summary="The least important weights, neurons or heads go; the rest trains on.",
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

#: Tuners that hftune adds to PEFT; importing the package of the options tells PEFT of one.
TUNERS = {
    "bottleneck": Row(
        target="hftune.methods.peft:Peft",
        options="hftune.methods.bottleneck:BottleneckConfig",
        summary="Small networks after, or beside, the sublayers (Houlsby, Pfeiffer, parallel).",
    ),
    "diff_pruning": Row(
        target="hftune.methods.diff_pruning.method:DiffPruning",
        options="hftune.methods.diff_pruning:DiffPruningConfig",
        summary="A difference to every weight, of which half a percent stays.",
    ),
}

#: Types of PEFT that take more than their config.
PEFT_METHODS = {
    "adalora": Row(
        target="hftune.methods.adalora:AdaLora",
        summary="Low-rank updates whose ranks are moved between layers.",
    ),
    "prompt_tuning": Row(
        target="hftune.methods.prompt_learning:PromptLearning",
        summary="Virtual tokens in front of the row.",
    ),
    "p_tuning": Row(
        target="hftune.methods.prompt_learning:PromptLearning",
        summary="Virtual tokens out of a small network.",
    ),
    "prefix_tuning": Row(
        target="hftune.methods.prompt_learning:PromptLearning",
        summary="Virtual keys and values in every layer.",
    ),
}

_VIRTUAL = "its virtual tokens are no weights of the base"
#: Adapters that cannot go into their base -> why.
CANNOT_MERGE = {
    "adaption_prompt": "its prompts are no weights of the base",
    "beft": "PEFT does not merge its biases",
    "bottleneck": "what lies between its projections is not linear",
    "lily": "PEFT does not merge what its layers share",
    "p_tuning": _VIRTUAL,
    "prefix_tuning": _VIRTUAL,
    "prompt_tuning": _VIRTUAL,
}

PEFT = Row(target="hftune.methods.peft:Peft", summary="A PEFT adapter.")
