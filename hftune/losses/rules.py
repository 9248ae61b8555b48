# SPDX-License-Identifier: Apache-2.0
"""Rules of the loss."""

from typing import Any

from hftune.core.rules import RecipeView, Rule, training
from hftune.data.section import DataSection
from hftune.losses import LOSSES

SMOOTHING = ", ".join(name for name, row in LOSSES.items() if row.smooths)


def _compares_rows(view: RecipeView) -> bool:
    return view.loss_row is not None and view.loss_row.compares_rows


def _option(view: RecipeView, name: str) -> Any:
    return None if view.loss is None else view.loss.options.get(name)


def _counts_a_stream(view: RecipeView, name: str) -> bool:
    return view[DataSection].streaming and isinstance(_option(view, name), str)


LOSS_RULES = (
    Rule(
        "loss.class_weights",
        "weights by name are counted over all rows, which a stream cannot; give the numbers",
        lambda s: _counts_a_stream(s, "class_weights"),
    ),
    Rule(
        "loss.pos_weight",
        "balanced counts all rows, which a stream cannot; give the weights",
        lambda s: _counts_a_stream(s, "pos_weight"),
    ),
    Rule(
        "loss.logit_adjustment",
        "it counts the classes of all rows, which a stream cannot",
        lambda s: s[DataSection].streaming and _option(s, "logit_adjustment") is not None,
    ),
    Rule(
        "loss.logit_adjustment",
        "class_weights by name correct for the shares of the classes, too: take one of the two",
        lambda s: (
            _option(s, "logit_adjustment") is not None
            and isinstance(_option(s, "class_weights"), str)
        ),
    ),
    Rule(
        "loss.beta",
        "it is that of class_weights: effective_number",
        lambda s: (
            _option(s, "beta") is not None and _option(s, "class_weights") != "effective_number"
        ),
    ),
    Rule(
        "training.label_smoothing_factor",
        f"of the losses, only {SMOOTHING} smooth labels",
        lambda s: (
            s.loss_row is not None
            and not s.loss_row.smooths
            and bool(training(s, "label_smoothing_factor"))
        ),
    ),
    Rule(
        "training.per_device_train_batch_size",
        "this loss compares the rows of a micro-batch, and one row has no other",
        lambda s: _compares_rows(s) and training(s, "per_device_train_batch_size") == 1,
    ),
    Rule(
        "data.token_budget",
        "this loss compares the rows of a micro-batch, whose number a budget leaves open: "
        + ", ".join(name for name, row in LOSSES.items() if row.compares_rows),
        lambda s: s[DataSection].token_budget is not None and _compares_rows(s),
    ),
)
