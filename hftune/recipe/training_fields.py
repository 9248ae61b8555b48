# SPDX-License-Identifier: Apache-2.0
"""What the classes' own types do not say: ranges of numbers, and fields that are not taken."""

from typing import Any

Schema = dict[str, Any]

POSITIVE = {"exclusiveMinimum": 0}
NOT_NEGATIVE = {"minimum": 0}
AT_LEAST_ONE = {"minimum": 1}
FRACTION = {"minimum": 0, "exclusiveMaximum": 1}
WITHIN = {"exclusiveMinimum": 0, "exclusiveMaximum": 1}
#: Steps, or below 1 a share of the run, where a class of PEFT's has whole numbers alone.
STEPS = {"type": "number", "minimum": 0}


def one_of(*names: str) -> Schema:
    """Return a schema in place of the class's own, which would take any text beside the names."""
    return {"anyOf": [{"enum": list(names), "type": "string"}]}


#: What the classes' own types do not say. Section -> field -> JSON Schema keywords.
RANGES: dict[str, dict[str, Schema]] = {
    "data": {
        "block_size": {"minimum": 2},
        "shuffle_buffer_size": AT_LEAST_ONE,
        "token_budget": AT_LEAST_ONE,
        "max_length": AT_LEAST_ONE,
        "max_target_length": AT_LEAST_ONE,
        "max_train_samples": AT_LEAST_ONE,
        "max_eval_samples": AT_LEAST_ONE,
        "validation_size": NOT_NEGATIVE,
    },
    "method": {
        "r": AT_LEAST_ONE,
        "target_r": AT_LEAST_ONE,
        "init_r": AT_LEAST_ONE,
        "lora_alpha": POSITIVE,
        "alpha": POSITIVE,
        "lora_dropout": FRACTION,
        "dropout": FRACTION,
        "reduction_factor": AT_LEAST_ONE,
        "num_virtual_tokens": AT_LEAST_ONE,
        "beta1": WITHIN,
        "beta2": WITHIN,
        "deltaT": AT_LEAST_ONE,
        "orth_reg_weight": NOT_NEGATIVE,
        "prompt_tuning_init": one_of("TEXT", "SAMPLE_VOCAB", "RANDOM"),
        "encoder_reparameterization_type": one_of("MLP", "LSTM"),
        "encoder_num_layers": AT_LEAST_ONE,
        "encoder_dropout": FRACTION,
        "tfinal": STEPS,
        "tinit": STEPS,
        "target_sparsity": WITHIN,
        "projection_ratio": {"exclusiveMinimum": 0, "maximum": 1},
        "penalty_weight": NOT_NEGATIVE,
        "gate_lr_ratio": POSITIVE,
        "finishing_lr_ratio": POSITIVE,
        "encoder_hidden_size": AT_LEAST_ONE,
        "head_only_rate": POSITIVE,
        "head_only_steps": NOT_NEGATIVE,
        "merge_every": POSITIVE,
        "reset_ratio": {"minimum": 0, "maximum": 1},
        "rewarm_steps": NOT_NEGATIVE,
        "unfreeze_every": POSITIVE,
        "cv": {"minimum": 2},
        "warm_start_steps": NOT_NEGATIVE,
    },
    "loss": {
        "alpha": POSITIVE,
        "beta": FRACTION,
        "contrastive_weight": {"exclusiveMinimum": 0, "maximum": 1},
        "delta": POSITIVE,
        "gamma": NOT_NEGATIVE,
        "logit_adjustment": POSITIVE,
        "temperature": POSITIVE,
    },
    "training": {
        "adam_beta1": FRACTION,
        "adam_beta2": FRACTION,
        "adam_epsilon": POSITIVE,
        "eval_accumulation_steps": AT_LEAST_ONE,
        "eval_steps": POSITIVE,
        "gradient_accumulation_steps": AT_LEAST_ONE,
        "label_smoothing_factor": FRACTION,
        "learning_rate": POSITIVE,
        "logging_steps": POSITIVE,
        "max_grad_norm": NOT_NEGATIVE,
        "max_steps": {"minimum": 1, "alsoAllowed": [-1]},
        "neftune_noise_alpha": POSITIVE,
        "num_train_epochs": POSITIVE,
        "per_device_eval_batch_size": AT_LEAST_ONE,
        "per_device_train_batch_size": AT_LEAST_ONE,
        "save_steps": POSITIVE,
        "save_total_limit": AT_LEAST_ONE,
        "seed": NOT_NEGATIVE,
        "warmup_steps": NOT_NEGATIVE,
        "weight_decay": NOT_NEGATIVE,
        "train_sampling_strategy": {"enum": ["random", "sequential", "group_by_length"]},
    },
}

#: TrainingArguments that have no effect here, or an unsafe one -> what to do instead.
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
    """Return why a field of TrainingArguments is not taken, or None when it is."""
    if name in PUSH_FIELDS:
        return None
    if name in REFUSED_TRAINING:
        return REFUSED_TRAINING[name]
    return next((why for start, why in REFUSED_PREFIXES.items() if name.startswith(start)), None)


PUSH_FIELDS = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision")
