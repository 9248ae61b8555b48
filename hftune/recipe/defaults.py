# SPDX-License-Identifier: Apache-2.0
"""Short forms spelled out, and the defaults that a careful practitioner would pick."""

from enum import Enum
from typing import Any

from hftune.core.registry import Choice
from hftune.data.section import CurriculumChoice, DataSection, SamplingChoice, SourceItem
from hftune.distillation.section import DistillationSection
from hftune.evaluation.section import EvaluationSection
from hftune.initialization.section import InitializationRule, InitializationSection
from hftune.methods import CHANGES_SHAPE, FITTED, method_row
from hftune.models.section import ModelSection
from hftune.optimization.optimizers import DEFAULT as ADAMW
from hftune.optimization.optimizers import OPTIMIZERS
from hftune.optimization.schedules import DEFAULT as LINEAR
from hftune.optimization.schedules import SCHEDULES
from hftune.recipe.sections import DEFAULT_NAMES, SHORT_FORMS
from hftune.regularization.section import regularization_section

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
    "adalora": {"init_r": 12, "target_r": 8, "tinit": 0.1, "tfinal": 0.5},
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
        "distillation": _distillation(_spelled_out(tree, "distillation"))
        if "distillation" in tree
        else None,
        "initialization": _initialization(_spelled_out(tree, "initialization")),
        "regularization": regularization_section(tree.get("regularization") or {}),
        "evaluation": EvaluationSection(**(tree.get("evaluation") or {})),
        "training": {
            key: value.value if isinstance(value, Enum) else value
            for key, value in (tree.get("training") or {}).items()
        },
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
        "learning_rate": OPTIMIZERS[given.get("optim", ADAMW)].learning_rate
        or learning_rate(sections["task"], sections["method"].name),
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
    by_task = dict(TASK_DEFAULTS[sections["task"]])
    if data.token_budget is not None:
        by_task.pop("per_device_train_batch_size")
    by_method = METHOD_TRAINING.get(sections["method"].name, {})
    chosen = {**defaults, **by_task, **by_method, **given}
    chosen |= {k: v for k, v in optimizer_defaults(chosen).items() if k not in given}
    can_go_back = sections["method"].name not in CHANGES_SHAPE
    matches = chosen["save_strategy"] in ("best", evaluates) and can_go_back
    best = given.get("load_best_model_at_end", evaluates != "no" and matches)
    chosen["load_best_model_at_end"] = best
    return chosen


def optimizer_defaults(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return what an optimizer or a schedule leaves no other choice for, or no better one."""
    optimizer = OPTIMIZERS[chosen.get("optim", ADAMW)]
    defaults = dict(optimizer.training_defaults)
    if not optimizer.decays:
        defaults["weight_decay"] = 0.0
    schedule = SCHEDULES[{**chosen, **defaults}.get("lr_scheduler_type", LINEAR)]
    if schedule.warmup is not None:
        defaults["warmup_steps"] = schedule.warmup
    elif schedule.flat and not optimizer.own_schedule:
        defaults["warmup_steps"] = 0
    return defaults


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
    """The data section; sources, sampling and curriculum become records."""
    path = section.get("path")
    if isinstance(path, list | tuple):
        items = [SourceItem(**item) if isinstance(item, dict) else item for item in path]
        section["path"] = items
    for key, record in (("sampling", SamplingChoice), ("curriculum", CurriculumChoice)):
        if (given := section.get(key)) is not None:
            section[key] = record(**({"name": given} if isinstance(given, str) else given))
    return DataSection(**section)


def _distillation(section: dict[str, Any]) -> DistillationSection:
    """The distillation section; JSON has texts alone as keys, also where they are numbers."""
    for name in ("hidden_states", "attentions"):
        layers = section.get(name) or {}
        section[name] = {
            int(layer) if isinstance(layer, str) and layer.isdecimal() else layer: other
            for layer, other in layers.items()
        }
    return DistillationSection(**section)


def _initialization(section: dict[str, Any]) -> InitializationSection:
    """The initialization section; rules that are mappings become records."""
    rules = [InitializationRule(**rule) for rule in section.pop("rules", ())]
    return InitializationSection(**section, rules=rules)


def _choice(options: dict[str, Any], defaults: dict[str, dict[str, Any]]) -> Choice:
    name = options.pop("name")
    return Choice(name=name, options={**defaults.get(name, {}), **options})
