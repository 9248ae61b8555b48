# SPDX-License-Identifier: Apache-2.0
"""Facts about AdaLoRA and rules about its options."""

from hftune.core.registry import AT_LEAST_ONE, AT_LEAST_ZERO, WITHIN, Schema
from hftune.core.rules import RecipeView, Rule, option
from hftune.methods.peft_row import LORA_RULES, adapter

#: Optimizer steps, or below 1 a share of the run; the class itself has whole numbers alone.
STEPS: Schema = {"type": "number", "minimum": 0}


def _is_no_step(view: RecipeView, name: str) -> bool:
    given = option(view, name) or 0
    return bool(given > 1 and given % 1)


ADALORA = adapter(
    "Low-rank updates whose ranks are moved between layers.",
    "hftune.methods.adalora.method:AdaLora",
    ranges={
        "target_r": AT_LEAST_ONE,
        "init_r": AT_LEAST_ONE,
        "tinit": STEPS,
        "tfinal": STEPS,
        "deltaT": AT_LEAST_ONE,
        "beta1": WITHIN,
        "beta2": WITHIN,
        "orth_reg_weight": AT_LEAST_ZERO,
    },
    rules=(
        Rule(
            "method.target_r",
            "the budget of adalora falls from init_r to target_r, so target_r must be below init_r",
            lambda s: option(s, "target_r") >= option(s, "init_r"),
        ),
        Rule(
            "method.r",
            "adalora begins with the rank init_r and has no r",
            lambda s: option(s, "r") not in (None, 8),
        ),
        Rule(
            "method.tinit",
            "tinit and tfinal are whole steps; below 1 they are shares of the run",
            lambda s: _is_no_step(s, "tinit") or _is_no_step(s, "tfinal"),
        ),
        Rule(
            "method.total_step",
            "the run fills in total_step and rank_pattern of adalora: leave them out",
            lambda s: option(s, "total_step") is not None or option(s, "rank_pattern") is not None,
        ),
        *LORA_RULES,
    ),
    defaults={"init_r": 12, "target_r": 8, "tinit": 0.1, "tfinal": 0.5},
    sets_weights=True,
    settles_late=True,
    changes_shape=True,
)
