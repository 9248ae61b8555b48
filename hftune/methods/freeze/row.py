# SPDX-License-Identifier: Apache-2.0
"""Facts about freezing and rules about its options."""

from hftune.core.registry import ABOVE_ZERO, AT_LEAST_ZERO, MethodRow
from hftune.core.rules import RecipeView, Rule, option, training


def _unfreezes(view: RecipeView) -> bool:
    return bool(option(view, "head_only_steps") or option(view, "unfreeze_every"))


FREEZE = MethodRow(
    target="hftune.methods.freeze.method:Freeze",
    options="hftune.methods.freeze.method:FreezeConfig",
    summary="Every weight but frozen layers, embeddings or modules; gradual unfreezing.",
    learning_rate=5e-5,
    learning_rate_writing=2e-5,
    ranges={
        "head_only_rate": ABOVE_ZERO,
        "head_only_steps": AT_LEAST_ZERO,
        "unfreeze_every": ABOVE_ZERO,
    },
    rules=(
        Rule(
            "training.ddp_find_unused_parameters",
            "a schedule of freeze needs it: leave it out, or say true",
            lambda s: _unfreezes(s) and training(s, "ddp_find_unused_parameters") is False,
        ),
        Rule(
            "training.ddp_static_graph",
            "a schedule of freeze changes what trains",
            lambda s: _unfreezes(s) and bool(training(s, "ddp_static_graph")),
        ),
        Rule(
            "method.head_only_rate",
            "it has an effect only with head_only_steps or unfreeze_every",
            lambda s: option(s, "head_only_rate") not in (None, 1) and not _unfreezes(s),
        ),
    ),
    frozen_bottom=True,
    recompute_tested=True,
)
