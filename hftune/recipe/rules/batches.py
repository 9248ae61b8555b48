# SPDX-License-Identifier: Apache-2.0
"""Rules of ``data.token_budget``: what counts rows does not go with batches by tokens."""

from functools import partial

from hftune.losses import LOSSES
from hftune.methods import FITTED
from hftune.recipe.rules.rule import Rule, Sections, training

KEY = "data.token_budget"
#: Field of ``training`` -> why a budget and it do not go together.
REASONS = {
    "auto_find_batch_size": "it takes fewer rows where memory does not suffice; take a smaller "
    "data.token_budget",
    "dataloader_drop_last": "data.token_budget leaves no batch of fewer rows than it asks for",
    "learning_rate_scaling": "it goes by the rows of a step, which data.token_budget leaves open",
}
DEALING = ("split_batches", "dispatch_batches")


def _budget(sections: Sections) -> bool:
    return sections["data"].token_budget is not None


def _beside(name: str, sections: Sections) -> bool:
    return _budget(sections) and bool(training(sections, name))


def _compares_rows(sections: Sections) -> bool:
    row = None if sections["loss"] is None else LOSSES.get(sections["loss"].name)
    return row is not None and row.compares_rows


def _deals_otherwise(sections: Sections) -> bool:
    config = training(sections, "accelerator_config")
    return isinstance(config, dict) and any(config.get(name) for name in DEALING)


BATCH_RULES = (
    Rule(
        "training.per_device_train_batch_size",
        "data.token_budget says how large a batch is: leave one of the two out",
        partial(_beside, "per_device_train_batch_size"),
    ),
    Rule(
        "training.train_sampling_strategy",
        "data.token_budget puts rows together by their length itself: leave it at random",
        lambda s: _budget(s) and training(s, "train_sampling_strategy") == "group_by_length",
    ),
    *(Rule(f"training.{name}", says, partial(_beside, name)) for name, says in REASONS.items()),
    Rule(
        "training.accelerator_config",
        f"with data.token_budget each process has batches of its own: no {' or '.join(DEALING)}",
        lambda s: _budget(s) and _deals_otherwise(s),
    ),
    Rule(
        KEY,
        "a curriculum chooses the rows of each step by their number, which a budget leaves open",
        lambda s: _budget(s) and s["data"].curriculum is not None,
    ),
    Rule(
        KEY,
        "it must know the lengths of all rows, which a stream does not",
        lambda s: _budget(s) and s["data"].streaming,
    ),
    Rule(
        KEY,
        "this loss compares the rows of a micro-batch, whose number a budget leaves open: "
        + ", ".join(name for name, row in LOSSES.items() if row.compares_rows),
        lambda s: _budget(s) and _compares_rows(s),
    ),
    Rule(
        KEY,
        "a probe is fitted on all rows at once",
        lambda s: _budget(s) and s["method"].name in FITTED,
    ),
)
