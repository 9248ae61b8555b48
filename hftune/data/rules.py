# SPDX-License-Identifier: Apache-2.0
"""Rules of the rows: streams, the validation split, and batches of a token budget."""

from functools import partial

from hftune.core.rules import RecipeView, Rule, training
from hftune.data.section import DataSection

DATA_RULES = (
    Rule(
        "data.streaming",
        "a stream has no length: set training.max_steps",
        lambda s: s[DataSection].streaming and training(s, "max_steps", -1) <= 0,
    ),
    Rule(
        "data.validation_size",
        "a stream has no length to take a share of: give a number of rows, or 0",
        lambda s: (
            s[DataSection].streaming
            and s[DataSection].validation is None
            and s[DataSection].validation_size != int(s[DataSection].validation_size)
        ),
    ),
    Rule(
        "training.train_sampling_strategy",
        "group_by_length must know all rows, which a stream does not",
        lambda s: (
            s[DataSection].streaming and training(s, "train_sampling_strategy") == "group_by_length"
        ),
    ),
    Rule(
        "training.dataloader_num_workers",
        "a stream is read by the process that trains",
        lambda s: s[DataSection].streaming and training(s, "dataloader_num_workers", 0) > 0,
    ),
    Rule(
        "data.path",
        "a list of sources cannot be streamed yet; a list of files can",
        lambda s: (
            s[DataSection].streaming
            and isinstance(path := s[DataSection].path, list)
            and not all(isinstance(item, str) for item in path)
        ),
    ),
    Rule(
        "data.shuffle_buffer_size",
        "rows that are not streamed are shuffled whole",
        lambda s: s[DataSection].shuffle_buffer_size is not None and not s[DataSection].streaming,
    ),
    Rule(
        "data.validation_size",
        "data.validation is given, so nothing is split off: leave validation_size out",
        lambda s: s[DataSection].validation is not None and s[DataSection].validation_size != 0.1,
    ),
    Rule(
        "data.max_eval_samples",
        "there is no validation part to take rows from",
        lambda s: s[DataSection].max_eval_samples is not None and not s[DataSection].has_validation,
    ),
)


KEY = "data.token_budget"


#: Field of ``training`` -> why a budget and it do not go together.
REASONS = {
    "auto_find_batch_size": "it takes fewer rows where memory does not suffice; take a smaller "
    "data.token_budget",
    "dataloader_drop_last": "data.token_budget leaves no batch of fewer rows than it asks for",
    "learning_rate_scaling": "it goes by the rows of a step, which data.token_budget leaves open",
}


DEALING = ("split_batches", "dispatch_batches")


def _budget(view: RecipeView) -> bool:
    return view[DataSection].token_budget is not None


def _beside(name: str, view: RecipeView) -> bool:
    return _budget(view) and bool(training(view, name))


def _deals_otherwise(view: RecipeView) -> bool:
    config = training(view, "accelerator_config")
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
        lambda s: _budget(s) and s[DataSection].curriculum is not None,
    ),
    Rule(
        KEY,
        "it must know the lengths of all rows, which a stream does not",
        lambda s: _budget(s) and s[DataSection].streaming,
    ),
    Rule(
        KEY,
        "a probe is fitted on all rows at once",
        lambda s: _budget(s) and s.method_row.fitted,
    ),
)
