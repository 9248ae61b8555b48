# SPDX-License-Identifier: Apache-2.0
"""Short forms spelled out, and the defaults that a careful practitioner would pick."""

from typing import Any

from hftune.methods import CHANGES_SHAPE, FITTED, method_row
from hftune.recipe.schema import (
    DEFAULT_NAMES,
    SHORT_FORMS,
    Choice,
    DataSection,
    EvaluationSection,
    ModelSection,
    SourceItem,
)

#: Learning rate by method, for methods that do not train well at LoRA's.
LEARNING_RATES = {
    "full": 5e-5,
    "freeze": 5e-5,
    "bitfit": 1e-3,
    "qlora": 2e-4,
    "head_only": 1e-3,
    "ia3": 8e-3,
    "ln_tuning": 1e-3,
    "beft": 1e-3,
    "p_tuning": 1e-2,
    "prefix_tuning": 1e-2,
    "prompt_tuning": 3e-2,
    "prune": 5e-5,
    "vera": 4e-3,
}
LORA_LEARNING_RATE = 5e-4

#: Task -> what TrainingArguments would choose less well.
TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "text-classification": {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
    },
    "token-classification": {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
    },
    "text2text-generation": {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
    },
    "text-generation": {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
    },
}
LOWER_IS_BETTER = ("loss", "perplexity", "mse", "rmse", "mae", "hamming_loss")
#: What of ``training`` is read where no Trainer runs, beside where the model is pushed.
FITTED_TRAINING = ("output_dir", "seed", "use_cpu", "per_device_eval_batch_size")
LANGUAGE_MODEL_LEARNING_RATES = {"full": 2e-5, "freeze": 2e-5, "prune": 2e-5}

#: Method -> what its PEFT config leaves open, or chooses less well.
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": "all-linear"},
    "p_tuning": {"num_virtual_tokens": 20},
    "prefix_tuning": {"num_virtual_tokens": 20},
    "prompt_tuning": {"num_virtual_tokens": 20},
    "qlora": {
        "r": 64,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "target_modules": "all-linear",
    },
    "relora": {"target_modules": "all-linear"},
}
#: Method -> what its paper trains with.
METHOD_TRAINING: dict[str, dict[str, Any]] = {
    "qlora": {
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 0.03,
        "max_grad_norm": 0.3,
    },
}
#: What qlora keeps its base in; the device settles the type of the computation.
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


def typed_sections(tree: dict[str, Any]) -> dict[str, Any]:
    """Turn a checked tree into records, short forms spelled out; ``training`` stays as given."""
    method = _choice(_spelled_out(tree, "method"), METHOD_DEFAULTS)
    return {
        "task": tree["task"],
        "model": _model(_spelled_out(tree, "model"), method.name),
        "data": _data(_spelled_out(tree, "data")),
        "method": method,
        "loss": _choice(_spelled_out(tree, "loss"), {}) if "loss" in tree else None,
        "evaluation": EvaluationSection(**(tree.get("evaluation") or {})),
        "training": dict(tree.get("training") or {}),
    }


def training_defaults(sections: dict[str, Any]) -> dict[str, Any]:
    """Return the user's ``training`` over hftune's defaults.

    With a validation part, evaluation and saving happen each epoch and the best model is kept.
    """
    given = sections["training"]
    if sections["method"].name in FITTED:
        return {"seed": 42, "per_device_eval_batch_size": 64, **given}
    data = sections["data"]
    has_validation = data.validation is not None or data.validation_size > 0
    evaluates = given.get("eval_strategy", "epoch" if has_validation else "no")
    saves = given.get("save_strategy", evaluates if evaluates != "no" else "epoch")
    defaults: dict[str, Any] = {
        "learning_rate": learning_rate(sections["task"], sections["method"].name),
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "logging_steps": 0.02,
        "seed": 42,
        "eval_strategy": evaluates,
        "save_strategy": saves,
        "save_total_limit": 1,
        "report_to": "none",
    }
    if evaluates == "steps":
        defaults["eval_steps"] = given.get("logging_steps", defaults["logging_steps"])
        if saves == "steps":
            defaults["save_steps"] = given.get("eval_steps", defaults["eval_steps"])
    if given.get("max_steps", -1) <= 0:
        defaults["num_train_epochs"] = 3
    by_method = METHOD_TRAINING.get(sections["method"].name, {})
    chosen = {**defaults, **TASK_DEFAULTS[sections["task"]], **by_method, **given}
    can_go_back = sections["method"].name not in CHANGES_SHAPE
    matches = chosen["save_strategy"] in ("best", evaluates) and can_go_back
    best = given.get("load_best_model_at_end", evaluates != "no" and matches)
    chosen["load_best_model_at_end"] = best
    return chosen


def learning_rate(task: str, method: str) -> float:
    """Return the default rate for a method on a task."""
    if task == "text-generation" and method in LANGUAGE_MODEL_LEARNING_RATES:
        return LANGUAGE_MODEL_LEARNING_RATES[method]
    return LEARNING_RATES.get(method, LORA_LEARNING_RATE)


def _spelled_out(tree: dict[str, Any], name: str) -> dict[str, Any]:
    section = tree.get(name, DEFAULT_NAMES.get(name, {}))
    return {SHORT_FORMS[name]: section} if isinstance(section, str) else dict(section)


def _model(section: dict[str, Any], method: str) -> ModelSection:
    """The model section; qlora quantizes the base, but for what the recipe says itself."""
    if method_row(method).quantizes:
        section["quantization"] = {**NF4, **(section.get("quantization") or {})}
    return ModelSection(**section)


def _data(section: dict[str, Any]) -> DataSection:
    """The data section; sources that are mappings become records."""
    path = section.get("path")
    if isinstance(path, list | tuple):
        items = [SourceItem(**item) if isinstance(item, dict) else item for item in path]
        section["path"] = items
    return DataSection(**section)


def _choice(options: dict[str, Any], defaults: dict[str, dict[str, Any]]) -> Choice:
    name = options.pop("name")
    return Choice(name=name, options={**defaults.get(name, {}), **options})
