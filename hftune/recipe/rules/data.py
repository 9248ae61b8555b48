# SPDX-License-Identifier: Apache-2.0
"""Rules of the rows: their labels, streams, and the validation part."""

from hftune.recipe.rules.rule import Rule, has_validation, training

STREAMED = ("text-classification", "text-generation")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


DATA_RULES = (
    Rule(
        "model.config.problem_type",
        f"it is one of {', '.join(PROBLEM_TYPES)}",
        lambda s: s["model"].config.get("problem_type") not in (None, *PROBLEM_TYPES),
    ),
    Rule(
        "data.label_separator",
        "it separates several labels; with this problem type a text has one",
        lambda s: (
            s["data"].label_separator is not None
            and s["model"].config.get("problem_type") in (PROBLEM_TYPES[0], PROBLEM_TYPES[2])
        ),
    ),
    Rule(
        "data.label_names",
        "regression has numbers, not labels",
        lambda s: (
            bool(s["data"].label_names) and s["model"].config.get("problem_type") == "regression"
        ),
    ),
    Rule(
        "data.streaming",
        f"only {' and '.join(STREAMED)} can be streamed so far",
        lambda s: s["data"].streaming and s["task"] not in STREAMED,
    ),
    Rule(
        "data.streaming",
        "a stream is not read through for its labels: list them in data.label_names, or set "
        "model.config.problem_type: regression",
        lambda s: (
            s["data"].streaming
            and s["task"] == "text-classification"
            and not s["data"].label_names
            and s["model"].config.get("problem_type") != "regression"
        ),
    ),
    Rule(
        "data.streaming",
        "a stream has no length: set training.max_steps",
        lambda s: s["data"].streaming and training(s, "max_steps", -1) <= 0,
    ),
    Rule(
        "data.validation_size",
        "a stream has no length to take a share of: give a number of rows, or 0",
        lambda s: (
            s["data"].streaming
            and s["data"].validation is None
            and s["data"].validation_size != int(s["data"].validation_size)
        ),
    ),
    Rule(
        "training.train_sampling_strategy",
        "group_by_length must know all rows, which a stream does not",
        lambda s: (
            s["data"].streaming and training(s, "train_sampling_strategy") == "group_by_length"
        ),
    ),
    Rule(
        "training.dataloader_num_workers",
        "a stream is read by the process that trains",
        lambda s: s["data"].streaming and training(s, "dataloader_num_workers", 0) > 0,
    ),
    Rule(
        "data.path",
        "a list of sources cannot be streamed yet; a list of files can",
        lambda s: (
            s["data"].streaming
            and isinstance(s["data"].path, list)
            and not all(isinstance(item, str) for item in s["data"].path)
        ),
    ),
    Rule(
        "data.shuffle_buffer_size",
        "rows that are not streamed are shuffled whole",
        lambda s: s["data"].shuffle_buffer_size is not None and not s["data"].streaming,
    ),
    Rule(
        "data.validation_size",
        "data.validation is given, so nothing is split off: leave validation_size out",
        lambda s: s["data"].validation is not None and s["data"].validation_size != 0.1,
    ),
    Rule(
        "data.max_eval_samples",
        "there is no validation part to take rows from",
        lambda s: s["data"].max_eval_samples is not None and not has_validation(s),
    ),
)
