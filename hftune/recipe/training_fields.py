# SPDX-License-Identifier: Apache-2.0
"""Ranges of numbers, and fields of TrainingArguments that hftune refuses.

The classes' own types express neither.
"""

from hftune.core.registry import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    AT_LEAST_ZERO,
    FRACTION,
    Schema,
)

#: Section -> field -> JSON Schema keywords that the field's type does not express.
RANGES: dict[str, dict[str, Schema]] = {
    "data": {
        "block_size": {"minimum": 2},
        "shuffle_buffer_size": AT_LEAST_ONE,
        "token_budget": AT_LEAST_ONE,
        "max_length": AT_LEAST_ONE,
        "max_target_length": AT_LEAST_ONE,
        "max_train_samples": AT_LEAST_ONE,
        "max_eval_samples": AT_LEAST_ONE,
        "validation_size": AT_LEAST_ZERO,
    },
    "training": {
        "adam_beta1": FRACTION,
        "adam_beta2": FRACTION,
        "adam_epsilon": ABOVE_ZERO,
        "eval_accumulation_steps": AT_LEAST_ONE,
        "eval_steps": ABOVE_ZERO,
        "gradient_accumulation_steps": AT_LEAST_ONE,
        "label_smoothing_factor": FRACTION,
        "learning_rate": ABOVE_ZERO,
        "logging_steps": ABOVE_ZERO,
        "max_grad_norm": AT_LEAST_ZERO,
        "max_steps": {"minimum": 1, "alsoAllowed": [-1]},
        "neftune_noise_alpha": ABOVE_ZERO,
        "num_train_epochs": ABOVE_ZERO,
        "per_device_eval_batch_size": AT_LEAST_ONE,
        "per_device_train_batch_size": AT_LEAST_ONE,
        "save_steps": ABOVE_ZERO,
        "save_total_limit": AT_LEAST_ONE,
        "seed": AT_LEAST_ZERO,
        "warmup_steps": AT_LEAST_ZERO,
        "weight_decay": AT_LEAST_ZERO,
        "train_sampling_strategy": {"enum": ["random", "sequential", "group_by_length"]},
    },
}

#: Refused fields of TrainingArguments -> reason or replacement.
REFUSED_TRAINING = {
    "batch_eval_metrics": "metrics are computed over all rows at once",
    "disable_tqdm": "a terminal gets a bar, a log file plain lines",
    "do_eval": "evaluation follows training.eval_strategy",
    "do_predict": "run hftune predict on the finished run",
    "do_train": "hftune train always trains",
    "eval_use_gather_object": "scores are gathered as tensors",
    "hub_token": "no token in any file; use `hf auth login` or HF_TOKEN",
    "include_for_metrics": "hftune gathers what its metrics need",
    "label_names": "the task knows its labels",
    "length_column_name": "lengths are counted from the tokens",
    "local_rank": "the launcher sets it",
    "logging_nan_inf_filter": "losses that are not finite are always shown",
    "prediction_loss_only": "the task decides what evaluation keeps",
    "remove_unused_columns": "the task keeps exactly the columns that the model takes",
    "resume_from_checkpoint": "use `hftune train runs/NAME --resume`",
    "use_cache": "training never needs it",
}
REFUSED_PREFIXES = {
    "hub_": "the finished model is pushed once, at the end",
    "trackio_": "report_to is enough",
}


def refused_training(name: str) -> str | None:
    """Return the reason for refusing a field of TrainingArguments; None if it is allowed.

    Example:
        >>> refused_training("do_train")
        'hftune train always trains'
        >>> refused_training("learning_rate")
    """
    if name in PUSH_FIELDS:
        return None
    if name in REFUSED_TRAINING:
        return REFUSED_TRAINING[name]
    return next((why for start, why in REFUSED_PREFIXES.items() if name.startswith(start)), None)


#: Fields that apply to methods without a Trainer, in addition to the fields of pushing.
FITTED_TRAINING = ("output_dir", "seed", "use_cpu", "per_device_eval_batch_size")

PUSH_FIELDS = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision")
