# SPDX-License-Identifier: Apache-2.0
"""Tuners that hftune adds to PEFT: their facts, and rules about their options.

Importing the package of a tuner's options tells PEFT of it, so the rows do not stand there.
"""

from hftune.core.registry import ABOVE_ZERO, AT_LEAST_ONE, AT_LEAST_ZERO, FRACTION, WITHIN
from hftune.core.rules import Rule, option
from hftune.methods.peft_row import adapter
from hftune.models.section import ModelSection

#: Fields of the gates of diff_pruning and their defaults, which a resolved recipe spells out.
GATES = {
    "structured": True,
    "alpha_init": 5.0,
    "gate_lr_ratio": None,
    "penalty_schedule": "exponential",
}

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
        rules=(
            Rule(
                "model.quantization",
                "diff_pruning adds to single weights, which a quantized base no longer has",
                lambda s: s[ModelSection].quantization is not None,
            ),
            Rule(
                "method.mode",
                "l1 has no gates: leave out structured, alpha_init, gate_lr_ratio and "
                "penalty_schedule",
                lambda s: (
                    option(s, "mode") == "l1"
                    and any(option(s, name) not in (None, usual) for name, usual in GATES.items())
                ),
            ),
            Rule(
                "method.include_norm",
                "target_modules says which modules get a difference, norms too",
                lambda s: (
                    option(s, "include_norm") is False and option(s, "target_modules") is not None
                ),
            ),
            Rule(
                "method.finishing_lr_ratio",
                "with projection_ratio: 1 no step follows the projection",
                lambda s: (
                    option(s, "finishing_lr_ratio") not in (None, 10.0)
                    and option(s, "projection_ratio") == 1
                ),
            ),
        ),
        sets_weights=True,
        settles_late=True,
        draws=True,
    ),
}
