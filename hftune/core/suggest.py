# SPDX-License-Identifier: Apache-2.0
"""Suggestions for unknown names."""

from collections.abc import Iterable
from difflib import get_close_matches

#: Names in other tools and older versions -> names in hftune.
RENAMED = {
    "AdamW": "adamw_torch",
    "adamw": "adamw_torch",
    "alpha": "lora_alpha",
    "batch_size": "per_device_train_batch_size",
    "dropout": "lora_dropout",
    "early_stopping": "early_stopping_patience",
    "patience": "early_stopping_patience",
    "epochs": "num_train_epochs",
    "evaluation_strategy": "eval_strategy",
    "glorot_normal": "xavier_normal",
    "glorot_uniform": "xavier_uniform",
    "grad_accum": "gradient_accumulation_steps",
    "group_by_length": "train_sampling_strategy",
    "he_normal": "kaiming_normal",
    "he_uniform": "kaiming_uniform",
    "lora_r": "r",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "max_seq_length": "max_length",
    "model_name_or_path": "path",
    "no_cuda": "use_cpu",
    "optimizer": "optim",
    "rank": "r",
    "scheduler": "lr_scheduler_type",
    "torch_dtype": "dtype",
    "train_file": "path",
    "validation_file": "validation",
    "warmup_ratio": "warmup_steps",
}


def nearest(word: object, known: Iterable[str]) -> str | None:
    """Return the known name that ``word`` most likely stands for, or None.

    Example:
        >>> nearest("lr", ["learning_rate", "optim"]), nearest("optm", ["learning_rate", "optim"])
        ('learning_rate', 'optim')
        >>> nearest("colour", ["learning_rate", "optim"]) is None
        True
    """
    names = list(known)
    renamed = RENAMED.get(str(word))
    if renamed in names:
        return renamed
    matches = get_close_matches(str(word).replace("-", "_"), names, n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return ``"; did you mean X?"``, or an empty string if no known name is similar.

    Example:
        >>> did_you_mean("linaer", ["linear", "cosine"])
        '; did you mean linear?'
    """
    name = nearest(word, known)
    return f"; did you mean {name}?" if name else ""
