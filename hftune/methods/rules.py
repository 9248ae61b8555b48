# SPDX-License-Identifier: Apache-2.0
"""Rules over facts about methods; rules about options of one method stand in its row."""

from functools import partial

from hftune.core.registry import MethodRow
from hftune.core.rules import RecipeView, Rule, training
from hftune.methods import ROWS

CHANGES_SHAPE = ", ".join(name for name, row in ROWS.items() if row.changes_shape)


def _reentrant(view: RecipeView) -> bool:
    given = [training(view, f"{name}_checkpointing_kwargs") for name in
             ("activation", "gradient")]  # fmt: skip
    return any(isinstance(item, dict) and item.get("use_reentrant") for item in given)


def _recomputes_with(row: MethodRow, view: RecipeView) -> bool:
    keys = ("gradient_checkpointing", "activation_checkpointing")
    return view.method_row is row and any(training(view, key) for key in keys)


METHOD_RULES = (
    *(
        Rule(
            "training.gradient_checkpointing",
            f"{name} {row.no_checkpointing}",
            partial(_recomputes_with, row),
        )
        for name, row in ROWS.items()
        if row.no_checkpointing is not None
    ),
    Rule(
        "training.load_best_model_at_end",
        f"{CHANGES_SHAPE} changes its ranks as it goes, so an earlier checkpoint no longer fits "
        "the model",
        lambda s: bool(training(s, "load_best_model_at_end")) and s.method_row.changes_shape,
    ),
    Rule(
        "training.activation_checkpointing_kwargs",
        "use_reentrant gives no gradient to layers above a frozen bottom; leave it out",
        lambda s: s.method_row.frozen_bottom and _reentrant(s),
    ),
)
