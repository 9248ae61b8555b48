# SPDX-License-Identifier: Apache-2.0
"""Optimizers by name: those of Transformers, and classes of PyTorch that it has no name for.

Literal and light: a recipe is held against the table without importing torch.
"""

from typing import Any

from hftune.core.optimization_rows import OptimizerRow
from hftune.core.registry import (
    BELOW_ONE,
    COUNT,
    NOT_NEGATIVE,
    NUMBER,
    POSITIVE,
    SWITCH,
    WORD,
    Schema,
)

BETAS = ("adam_beta1", "adam_beta2")


ADAM = (*BETAS, "adam_epsilon")

_ADAMW: dict[str, Any] = {
    "args": {"amsgrad": SWITCH},
    "handed": ("amsgrad",),
    "reads": ADAM,
    "plain_states": True,
    "sharded": True,
    "state_options": ("amsgrad",),
}
_BNB, _TORCHAO, _GALORE = "bitsandbytes", "torchao", "galore-torch"
_ADEMAMIX: dict[str, Any] = {
    "package": _BNB,
    "reads": ADAM,
    "args": {
        "beta1": BELOW_ONE,
        "beta2": BELOW_ONE,
        "beta3": BELOW_ONE,
        "alpha": NOT_NEGATIVE,
        "eps": POSITIVE,
        "t_alpha": COUNT,
        "t_beta3": COUNT,
    },
}
_BNB_RMSPROP: dict[str, Any] = {
    "package": _BNB,
    "args": {"alpha": BELOW_ONE, "eps": POSITIVE, "momentum": NOT_NEGATIVE},
    "handed": ("alpha", "eps", "momentum"),
}
_LOW_BIT: dict[str, Any] = {
    "package": _TORCHAO,
    "reads": ADAM,
    "args": {"block_size": COUNT, "bf16_stochastic_round": SWITCH},
    "handed": ("block_size", "bf16_stochastic_round"),
}
_PROJECTION: dict[str, Schema] = {
    "rank": COUNT,
    "update_proj_gap": COUNT,
    "scale": POSITIVE,
    "proj_type": WORD,
}
_PROJECTED: dict[str, Any] = {"package": _GALORE, "args": _PROJECTION, "groups": False}
_APOLLO: dict[str, Any] = {
    "package": "apollo-torch",
    "args": {**_PROJECTION, "proj": WORD, "scale_type": WORD},
    "reads": ADAM,
    "groups": False,
}
_LOMO: dict[str, Any] = {
    "package": "lomo-optim",
    "groups": False,
    "decays": False,
    "takes_model": True,
    "in_backward": True,
}
_SCHEDULE_FREE: dict[str, Any] = {
    "package": "schedulefree",
    "args": {"weight_lr_power": NUMBER, "r": NUMBER},
    "own_schedule": True,
    "training_defaults": {"lr_scheduler_type": "constant"},
}
MOMENTUM: Schema = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
_SGD: dict[str, Schema] = {"momentum": MOMENTUM, "dampening": NUMBER, "nesterov": SWITCH}

OPTIMIZERS = {
    "adamw_torch": OptimizerRow(summary="AdamW of PyTorch, one tensor after the other.", **_ADAMW),
    "adamw_torch_fused": OptimizerRow(
        summary="AdamW of PyTorch in one kernel; the default.", **_ADAMW
    ),
    "adamw_torch_xla": OptimizerRow(summary="AdamW for TPUs.", package="torch_xla", reads=ADAM),
    "adamw_torch_npu_fused": OptimizerRow(
        summary="AdamW in one kernel for Ascend NPUs.", package="torch_npu", reads=ADAM
    ),
    "adafactor": OptimizerRow(
        summary="Second moments by rows and columns: little memory.",
        args={
            "clip_threshold": POSITIVE,
            "decay_rate": NUMBER,
            "beta1": BELOW_ONE,
            "scale_parameter": SWITCH,
        },
        handed=("clip_threshold", "decay_rate", "beta1", "scale_parameter"),
        state_bytes=1,
        state_options=("beta1",),
    ),
    "adamw_anyprecision": OptimizerRow(
        summary="AdamW with moments in bfloat16.",
        package="torchdistx",
        reads=ADAM,
        args={
            "use_kahan_summation": SWITCH,
            "momentum_dtype": WORD,
            "variance_dtype": WORD,
            "compensation_buffer_dtype": WORD,
        },
    ),
    "adamw_torch_4bit": OptimizerRow(
        summary="AdamW with moments in 4 bits.", state_bytes=1, **_LOW_BIT
    ),
    "adamw_torch_8bit": OptimizerRow(
        summary="AdamW with moments in 8 bits.", state_bytes=2, **_LOW_BIT
    ),
    "ademamix": OptimizerRow(
        summary="Adam with a second, slower average of the gradients.", state_bytes=12, **_ADEMAMIX
    ),
    "sgd": OptimizerRow(
        summary="Stochastic gradient descent; momentum through optim_args.",
        args=_SGD,
        plain_states=True,
        sharded=True,
        stateless_without="momentum",
        state_bytes=0,
        state_options=("momentum",),
        learning_rate=1e-2,
    ),
    "adagrad": OptimizerRow(
        summary="Rates that shrink with the sum of squared gradients.",
        args={"lr_decay": NOT_NEGATIVE, "eps": POSITIVE},
        plain_states=True,
        state_bytes=4,
    ),
    "adamw_bnb_8bit": OptimizerRow(
        summary="AdamW with moments in 8 bits.", package=_BNB, reads=ADAM, state_bytes=2
    ),
    "adamw_8bit": OptimizerRow(
        summary="Another name of adamw_bnb_8bit.", package=_BNB, reads=ADAM, state_bytes=2
    ),
    "ademamix_8bit": OptimizerRow(
        summary="AdEMAMix with its averages in 8 bits.", state_bytes=3, **_ADEMAMIX
    ),
    "lion_8bit": OptimizerRow(
        summary="Lion with its momentum in 8 bits.", package=_BNB, reads=BETAS, state_bytes=1
    ),
    "lion_32bit": OptimizerRow(
        summary="The sign of a momentum: half of Adam's memory.",
        package=_BNB,
        reads=BETAS,
        state_bytes=4,
    ),
    "paged_adamw_32bit": OptimizerRow(
        summary="AdamW whose moments move to the CPU when memory is short.",
        package=_BNB,
        reads=ADAM,
    ),
    "paged_adamw_8bit": OptimizerRow(
        summary="AdamW in 8 bits, paged to the CPU.", package=_BNB, reads=ADAM, state_bytes=2
    ),
    "paged_ademamix_32bit": OptimizerRow(
        summary="AdEMAMix, paged to the CPU.", state_bytes=12, **_ADEMAMIX
    ),
    "paged_ademamix_8bit": OptimizerRow(
        summary="AdEMAMix in 8 bits, paged to the CPU.", state_bytes=3, **_ADEMAMIX
    ),
    "paged_lion_32bit": OptimizerRow(
        summary="Lion, paged to the CPU.", package=_BNB, reads=BETAS, state_bytes=4
    ),
    "paged_lion_8bit": OptimizerRow(
        summary="Lion in 8 bits, paged to the CPU.", package=_BNB, reads=BETAS, state_bytes=1
    ),
    "rmsprop": OptimizerRow(
        summary="Gradients divided by a running root mean square.",
        args={
            "momentum": NOT_NEGATIVE,
            "alpha": BELOW_ONE,
            "eps": POSITIVE,
            "centered": SWITCH,
        },
        plain_states=True,
        sharded=True,
        state_bytes=4,
        state_options=("momentum", "centered"),
    ),
    "rmsprop_bnb": OptimizerRow(summary="RMSprop of bitsandbytes.", state_bytes=4, **_BNB_RMSPROP),
    "rmsprop_bnb_8bit": OptimizerRow(
        summary="RMSprop with its average in 8 bits.", state_bytes=1, **_BNB_RMSPROP
    ),
    "rmsprop_bnb_32bit": OptimizerRow(
        summary="RMSprop with its average in 32 bits.", state_bytes=4, **_BNB_RMSPROP
    ),
    "galore_adamw": OptimizerRow(
        summary="AdamW on gradients projected to a low rank.", **_PROJECTED
    ),
    "galore_adamw_8bit": OptimizerRow(summary="GaLore with moments in 8 bits.", **_PROJECTED),
    "galore_adafactor": OptimizerRow(summary="GaLore with Adafactor.", **_PROJECTED),
    "galore_adamw_layerwise": OptimizerRow(
        summary="GaLore that steps layer by layer in the backward.", in_backward=True, **_PROJECTED
    ),
    "galore_adamw_8bit_layerwise": OptimizerRow(
        summary="GaLore in 8 bits, layer by layer.", in_backward=True, **_PROJECTED
    ),
    "galore_adafactor_layerwise": OptimizerRow(
        summary="GaLore with Adafactor, layer by layer.", in_backward=True, **_PROJECTED
    ),
    "lomo": OptimizerRow(
        summary="SGD that steps inside the backward: no gradients are kept.",
        state_bytes=0,
        **_LOMO,
    ),
    "adalomo": OptimizerRow(summary="LOMO with adaptive rates.", state_bytes=0, **_LOMO),
    "grokadamw": OptimizerRow(
        summary="AdamW that amplifies slow gradients.",
        package="grokadamw",
        args={
            "alpha_init": NUMBER,
            "lamb": NUMBER,
            "gamma": NUMBER,
            "grokking_signal_decay_rate": NUMBER,
            "gradient_clipping": NOT_NEGATIVE,
        },
    ),
    "schedule_free_radam": OptimizerRow(
        summary="RAdam on an average of iterates: no schedule.", reads=ADAM, **_SCHEDULE_FREE
    ),
    "schedule_free_adamw": OptimizerRow(
        summary="AdamW on an average of iterates: no schedule.", reads=ADAM, **_SCHEDULE_FREE
    ),
    "schedule_free_sgd": OptimizerRow(
        summary="SGD on an average of iterates: no schedule.", state_bytes=4, **_SCHEDULE_FREE
    ),
    "apollo_adamw": OptimizerRow(
        summary="AdamW whose scaling comes from a low-rank projection.", **_APOLLO
    ),
    "apollo_adamw_layerwise": OptimizerRow(
        summary="APOLLO, layer by layer.", in_backward=True, **_APOLLO
    ),
    "stable_adamw": OptimizerRow(
        summary="AdamW with update clipping from Adafactor.",
        package="torch-optimi",
        reads=ADAM,
        args={"max_lr": POSITIVE, "kahan_sum": SWITCH, "decouple_lr": SWITCH},
        handed=("max_lr", "kahan_sum", "decouple_lr"),
    ),
    # Of PyTorch, without a name in Transformers.
    "adam": OptimizerRow(
        summary="Adam as published: weight decay is added to the gradient.",
        target="torch.optim:Adam",
        args={"amsgrad": SWITCH, "decoupled_weight_decay": SWITCH},
        reads=ADAM,
        plain_states=True,
        state_options=("amsgrad",),
    ),
    "amsgrad": OptimizerRow(
        summary="Adam whose second moment never decreases.",
        target="torch.optim:Adam",
        settings={"amsgrad": True},
        args={"decoupled_weight_decay": SWITCH},
        reads=ADAM,
        state_bytes=12,
    ),
    "nadam": OptimizerRow(
        summary="Adam with Nesterov momentum.",
        target="torch.optim:NAdam",
        args={"momentum_decay": NOT_NEGATIVE, "decoupled_weight_decay": SWITCH},
        reads=ADAM,
        plain_states=True,
    ),
    "radam": OptimizerRow(
        summary="Adam whose rate is rectified while the second moment is unsure.",
        target="torch.optim:RAdam",
        args={"decoupled_weight_decay": SWITCH},
        reads=ADAM,
        plain_states=True,
    ),
    "adadelta": OptimizerRow(
        summary="Steps in the unit of the weights; the rate is a factor near 1.",
        target="torch.optim:Adadelta",
        args={"rho": BELOW_ONE, "eps": POSITIVE},
        learning_rate=1.0,
    ),
    "nesterov": OptimizerRow(
        summary="SGD with Nesterov's look-ahead momentum, 0.9 if optim_args says no other.",
        target="torch.optim:SGD",
        settings={"momentum": 0.9, "nesterov": True},
        args={"momentum": POSITIVE},
        plain_states=True,
        state_bytes=4,
        learning_rate=1e-3,
    ),
    "asgd": OptimizerRow(
        summary="SGD whose weights from step t0 on are averaged; the average is saved.",
        target="torch.optim:ASGD",
        args={"t0": NOT_NEGATIVE, "lambd": NOT_NEGATIVE, "alpha": NOT_NEGATIVE},
        required_args={
            "t0": "the step from which on weights are averaged; torch's own would be 1e6"
        },
        average_key="ax",
        state_bytes=4,
        learning_rate=1e-2,
    ),
    "rprop": OptimizerRow(
        summary="The sign of the gradient alone, a step size a weight; for full batches.",
        target="torch.optim:Rprop",
        decays=False,
        full_batch="rprop compares the signs of two gradients; between batches they differ by "
        "chance, and the steps shrink to nothing",
        learning_rate=1e-4,
    ),
    "lbfgs": OptimizerRow(
        summary="Quasi-Newton steps with a line search; for full batches and few weights.",
        target="hftune.optimization.lbfgs:BatchLBFGS",
        args={
            "max_iter": COUNT,
            "max_eval": COUNT,
            "history_size": COUNT,
            "tolerance_grad": NOT_NEGATIVE,
            "tolerance_change": NOT_NEGATIVE,
            "line_search_fn": {"enum": ["strong_wolfe"]},
        },
        settings={"line_search_fn": "strong_wolfe"},
        decays=False,
        groups=False,
        closure=True,
        full_batch="lbfgs learns the curvature from differences of gradients; between batches they "
        "differ by chance",
        state_bytes=800,  # differences of weights and of gradients
        history_option=("history_size", 100),
        learning_rate=1.0,
        training_defaults={
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,  # gradients inside its step are not clipped
        },
    ),
    "sparse_adam": OptimizerRow(
        summary="Adam that leaves the embeddings of unseen tokens alone; AdamW for the rest.",
        target="hftune.optimization.combined_optimizer:RowAdam",
        reads=ADAM,
        first_part="hftune.optimization.parameter_groups:token_tables",
        rest_reads=ADAM,
    ),
    "muon": OptimizerRow(
        summary="Orthogonalized momentum for the layers' matrices; AdamW for the rest.",
        target="torch.optim:Muon",
        args={
            "momentum": BELOW_ONE,
            "nesterov": SWITCH,
            "ns_steps": COUNT,
            "adjust_lr_fn": {"enum": ["original", "match_rms_adamw"]},
        },
        settings={"adjust_lr_fn": "match_rms_adamw"},
        first_part="hftune.optimization.parameter_groups:matrices_of_layers",
        rest_reads=ADAM,
        state_bytes=4,
    ),
}

DEFAULT = "adamw_torch_fused"
