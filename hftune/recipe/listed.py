# SPDX-License-Identifier: Apache-2.0
"""One line for each optimizer and schedule that ``TrainingArguments`` names.

The names themselves come from the schema. What Transformers says of them is one sentence for all,
so the lines stand here; a test holds both together.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Listed:
    """A name of Transformers in plain words.

    Attributes:
        summary: One line for people.
        package: What must be installed beside hftune, as pip calls it.
    """

    summary: str
    package: str | None = None


_BNB, _TORCHAO, _GALORE = "bitsandbytes", "torchao", "galore-torch"

#: Values of ``training.optim``.
OPTIMIZERS = {
    "adamw_torch": Listed("AdamW of PyTorch, one tensor after the other."),
    "adamw_torch_fused": Listed("AdamW of PyTorch in one kernel; the default."),
    "adamw_torch_xla": Listed("AdamW for TPUs.", "torch_xla"),
    "adamw_torch_npu_fused": Listed("AdamW in one kernel for Ascend NPUs.", "torch_npu"),
    "adafactor": Listed("Second moments by rows and columns: little memory."),
    "adamw_anyprecision": Listed("AdamW with moments in bfloat16.", "torchdistx"),
    "adamw_torch_4bit": Listed("AdamW with moments in 4 bits.", _TORCHAO),
    "adamw_torch_8bit": Listed("AdamW with moments in 8 bits.", _TORCHAO),
    "ademamix": Listed("Adam with a second, slower average of the gradients.", _BNB),
    "sgd": Listed("Stochastic gradient descent; momentum through optim_args."),
    "adagrad": Listed("Rates that shrink with the sum of squared gradients."),
    "adamw_bnb_8bit": Listed("AdamW with moments in 8 bits.", _BNB),
    "adamw_8bit": Listed("Another name of adamw_bnb_8bit.", _BNB),
    "ademamix_8bit": Listed("AdEMAMix with its averages in 8 bits.", _BNB),
    "lion_8bit": Listed("Lion with its momentum in 8 bits.", _BNB),
    "lion_32bit": Listed("The sign of a momentum: half of Adam's memory.", _BNB),
    "paged_adamw_32bit": Listed("AdamW whose moments move to the CPU when memory is short.", _BNB),
    "paged_adamw_8bit": Listed("AdamW in 8 bits, paged to the CPU.", _BNB),
    "paged_ademamix_32bit": Listed("AdEMAMix, paged to the CPU.", _BNB),
    "paged_ademamix_8bit": Listed("AdEMAMix in 8 bits, paged to the CPU.", _BNB),
    "paged_lion_32bit": Listed("Lion, paged to the CPU.", _BNB),
    "paged_lion_8bit": Listed("Lion in 8 bits, paged to the CPU.", _BNB),
    "rmsprop": Listed("Gradients divided by a running root mean square."),
    "rmsprop_bnb": Listed("RMSprop of bitsandbytes.", _BNB),
    "rmsprop_bnb_8bit": Listed("RMSprop with its average in 8 bits.", _BNB),
    "rmsprop_bnb_32bit": Listed("RMSprop with its average in 32 bits.", _BNB),
    "galore_adamw": Listed("AdamW on gradients projected to a low rank.", _GALORE),
    "galore_adamw_8bit": Listed("GaLore with moments in 8 bits.", _GALORE),
    "galore_adafactor": Listed("GaLore with Adafactor.", _GALORE),
    "galore_adamw_layerwise": Listed("GaLore that steps layer by layer in the backward.", _GALORE),
    "galore_adamw_8bit_layerwise": Listed("GaLore in 8 bits, layer by layer.", _GALORE),
    "galore_adafactor_layerwise": Listed("GaLore with Adafactor, layer by layer.", _GALORE),
    "lomo": Listed("SGD that steps inside the backward: no gradients are kept.", "lomo-optim"),
    "adalomo": Listed("LOMO with adaptive rates.", "lomo-optim"),
    "grokadamw": Listed("AdamW that amplifies slow gradients.", "grokadamw"),
    "schedule_free_radam": Listed("RAdam on an average of iterates: no schedule.", "schedulefree"),
    "schedule_free_adamw": Listed("AdamW on an average of iterates: no schedule.", "schedulefree"),
    "schedule_free_sgd": Listed("SGD on an average of iterates: no schedule.", "schedulefree"),
    "apollo_adamw": Listed("AdamW whose scaling comes from a low-rank projection.", "apollo-torch"),
    "apollo_adamw_layerwise": Listed("APOLLO, layer by layer.", "apollo-torch"),
    "stable_adamw": Listed("AdamW with update clipping from Adafactor.", "torch-optimi"),
}

#: Values of ``training.lr_scheduler_type``.
SCHEDULES = {
    "linear": Listed("Down to 0 in a straight line; the default."),
    "cosine": Listed("Down to 0 along half a cosine."),
    "cosine_with_restarts": Listed("Several cosines, each from the top (num_cycles)."),
    "polynomial": Listed("Down to lr_end along a power (power)."),
    "constant": Listed("The same rate throughout, without warmup."),
    "constant_with_warmup": Listed("The same rate after the warmup."),
    "inverse_sqrt": Listed("Falls with the square root of the step, without end."),
    "reduce_lr_on_plateau": Listed("Falls when the metric stops improving; needs evaluation."),
    "cosine_with_min_lr": Listed("A cosine down to min_lr or min_lr_rate."),
    "cosine_warmup_with_min_lr": Listed("The same, with a warmup from warmup_lr_rate."),
    "warmup_stable_decay": Listed("Warmup, plateau, decay (num_decay_steps)."),
    "greedy": Listed("Rises while the metric improves, falls when it stops; needs evaluation."),
}
