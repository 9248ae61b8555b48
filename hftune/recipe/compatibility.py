# SPDX-License-Identifier: Apache-2.0
"""What goes with what: one table of rules, checked before anything heavy is imported.

``python -m hftune.recipe.compatibility`` prints the docs page of the same name from this table.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from hftune.core.errors import RecipeError
from hftune.hub.clean import PUSH_FIELDS
from hftune.losses import LOSSES
from hftune.methods import CHANGES_SHAPE, METHODS
from hftune.recipe.fitted import FITTED_RULES, NO_TRAINER, without_effect
from hftune.recipe.load import KeyPath, Source
from hftune.recipe.schema import TASK_OPTIONS
from hftune.tasks import TASKS

Sections = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """Two things that do not go together.

    Attributes:
        key: The key that the error points at.
        says: The sentence for the user, and for the docs.
        broken: Whether a recipe breaks the rule.
    """

    key: str
    says: str
    broken: Callable[[Sections], bool]


def _training(sections: Sections, key: str, default: Any = None) -> Any:
    return sections["training"].get(key, default)


def _has_validation(sections: Sections) -> bool:
    return sections["data"].validation is not None or sections["data"].validation_size > 0


def _quantized(sections: Sections, *bits: str) -> bool:
    quantization = sections["model"].quantization or {}
    return any(quantization.get(bit) for bit in bits)


def _option(sections: Sections, name: str) -> Any:
    return sections["method"].options.get(name)


def _without_push(name: str, sections: Sections) -> bool:
    return name in sections["training"] and not _training(sections, "push_to_hub")


def _given(sections: Sections, key: str) -> Any:
    section, *below = key.split(".")
    value = sections[section]
    for name in below:
        value = value.get(name) if isinstance(value, dict) else getattr(value, name)
    return value


def _generates(sections: Sections) -> bool:
    given = sections["evaluation"].generation
    return sections["task"] == "text2text-generation" if given is None else given is not False


def _found(*packages: str) -> bool:
    return all(find_spec(package) is not None for package in packages)


STREAMED = ("text-classification", "text-generation")
WRITES = ("text-generation", "text2text-generation")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
LANGUAGE_MODELS_ONLY = ("adaption_prompt", "trainable_tokens")
PROMPT_METHODS = ("prompt_tuning", "p_tuning", "prefix_tuning", "adaption_prompt")
#: Schedules that are a factor by step, without restarts of their own.
SCALABLE = ("linear", "cosine", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
            "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay")  # fmt: skip
#: Optimizers that keep averages in the shape of the parameter.
PLAIN_STATES = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad")

RULES = (
    *(Rule(*row) for row in FITTED_RULES),
    Rule(
        "method",
        f"{', '.join(LANGUAGE_MODELS_ONLY)} are made for language models",
        lambda s: s["task"] != "text-generation" and s["method"].name in LANGUAGE_MODELS_ONLY,
    ),
    Rule(
        "method",
        "osf takes every linear layer, the head of a tagger too; name method.target_modules",
        lambda s: (
            s["task"] == "token-classification"
            and s["method"].name == "osf"
            and _option(s, "target_modules") in (None, "all-linear")
        ),
    ),
    Rule(
        "model.classifier_pooling",
        "only the head of text-classification pools",
        lambda s: s["task"] != "text-classification" and s["model"].classifier_pooling != "cls",
    ),
    Rule(
        "model.classifier_pooling",
        "mean pooling cannot see the virtual tokens of prompt methods; use cls",
        lambda s: s["model"].classifier_pooling == "mean" and s["method"].name in PROMPT_METHODS,
    ),
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
        "evaluation.thresholds",
        "best_f1 looks for them in validation rows: set data.validation or data.validation_size",
        lambda s: s["evaluation"].thresholds == "best_f1" and not _has_validation(s),
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
        "data.label_names",
        "regression has numbers, not labels",
        lambda s: (
            bool(s["data"].label_names) and s["model"].config.get("problem_type") == "regression"
        ),
    ),
    Rule(
        "data.streaming",
        "a stream has no length: set training.max_steps",
        lambda s: s["data"].streaming and _training(s, "max_steps", -1) <= 0,
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
            s["data"].streaming and _training(s, "train_sampling_strategy") == "group_by_length"
        ),
    ),
    Rule(
        "training.dataloader_num_workers",
        "a stream is read by the process that trains",
        lambda s: s["data"].streaming and _training(s, "dataloader_num_workers", 0) > 0,
    ),
    Rule(
        "loss.class_weights",
        "balanced counts all rows, which a stream cannot; give the weights",
        lambda s: (
            s["data"].streaming
            and s["loss"] is not None
            and s["loss"].options.get("class_weights") == "balanced"
        ),
    ),
    Rule(
        "loss.pos_weight",
        "balanced counts all rows, which a stream cannot; give the weights",
        lambda s: (
            s["data"].streaming
            and s["loss"] is not None
            and s["loss"].options.get("pos_weight") == "balanced"
        ),
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
        "evaluation.generation",
        "judging texts needs sacrebleu and rouge-score: pip install 'hftune[generation]', or set "
        "it to false",
        lambda s: _generates(s) and _has_validation(s) and not _found("sacrebleu", "rouge_score"),
    ),
    Rule(
        "evaluation.generation",
        "there is no validation part to write texts for: set data.validation or "
        "data.validation_size",
        lambda s: bool(s["evaluation"].generation) and not _has_validation(s),
    ),
    Rule(
        "model.quantization",
        "quantized weights are frozen, so the method must be a PEFT adapter",
        lambda s: (
            s["model"].quantization is not None
            and s["method"].name in METHODS
            and s["method"].name != "relora"
        ),
    ),
    Rule(
        "model.quantization",
        "relora merges into 4-bit weights or whole ones, not into 8-bit ones",
        lambda s: _quantized(s, "load_in_8bit") and s["method"].name == "relora",
    ),
    Rule(
        "method.warm_start_steps",
        "a warm start trains every weight, and quantized ones cannot train",
        lambda s: s["model"].quantization is not None and bool(_option(s, "warm_start_steps")),
    ),
    Rule(
        "training.lr_scheduler_type",
        f"relora warms up again inside a schedule that it can scale: {', '.join(SCALABLE)}",
        lambda s: (
            s["method"].name == "relora"
            and _training(s, "lr_scheduler_type", "linear") not in SCALABLE
        ),
    ),
    Rule(
        "training.optim",
        f"relora prunes the optimizer's state, which it knows of {', '.join(PLAIN_STATES)}",
        lambda s: (
            s["method"].name == "relora"
            and _training(s, "optim", "adamw_torch") not in PLAIN_STATES
        ),
    ),
    Rule(
        "model.quantization",
        "bitsandbytes is not installed: pip install 'hftune[bnb]'",
        lambda s: (
            _quantized(s, "load_in_4bit", "load_in_8bit") and find_spec("bitsandbytes") is None
        ),
    ),
    Rule(
        "model.attn_implementation",
        "flash-attn is not installed; sdpa needs no package",
        lambda s: (
            s["model"].attn_implementation == "flash_attention_2"
            and find_spec("flash_attn") is None
        ),
    ),
    Rule(
        "method.init_lora_weights",
        "eva, corda and loftq compute their start from data or a second model; use the Python API",
        lambda s: _option(s, "init_lora_weights") in ("eva", "corda", "loftq"),
    ),
    Rule(
        "training.gradient_checkpointing",
        "prefix_tuning hands its prefix over as past keys, which checkpointing drops",
        lambda s: (
            s["method"].name == "prefix_tuning"
            and bool(
                _training(s, "gradient_checkpointing") or _training(s, "activation_checkpointing")
            )
        ),
    ),
    Rule(
        "training.fp16",
        "fp16 and bf16 exclude each other",
        lambda s: bool(_training(s, "fp16") and _training(s, "bf16")),
    ),
    Rule(
        "training.fp16",
        "fp16 does nothing on a CPU; use bf16 where the processor has it, or neither",
        lambda s: bool(_training(s, "fp16") and _training(s, "use_cpu")),
    ),
    Rule(
        "training.eval_strategy",
        "there is nothing to evaluate on: set data.validation or data.validation_size",
        lambda s: (
            _training(s, "eval_strategy", "no") not in ("no", False) and not _has_validation(s)
        ),
    ),
    Rule(
        "training.eval_steps",
        "it has an effect only with eval_strategy: steps",
        lambda s: "eval_steps" in s["training"] and _training(s, "eval_strategy") != "steps",
    ),
    Rule(
        "training.load_best_model_at_end",
        "the best model can only be known with evaluation: set eval_strategy",
        lambda s: (
            bool(_training(s, "load_best_model_at_end"))
            and (_training(s, "eval_strategy") in ("no", False) or not _has_validation(s))
        ),
    ),
    Rule(
        "training.load_best_model_at_end",
        "the best model must have been saved: save_strategy must be best or equal eval_strategy",
        lambda s: (
            bool(_training(s, "load_best_model_at_end"))
            and "save_strategy" in s["training"]
            and _training(s, "save_strategy")
            not in ("best", _training(s, "eval_strategy", "epoch"))
        ),
    ),
    Rule(
        "training.load_best_model_at_end",
        "adalora changes its ranks as it goes, so an earlier checkpoint no longer fits the model",
        lambda s: (
            bool(_training(s, "load_best_model_at_end")) and s["method"].name in CHANGES_SHAPE
        ),
    ),
    Rule(
        "training.save_strategy",
        "best needs evaluation: set eval_strategy",
        lambda s: (
            _training(s, "save_strategy") == "best"
            and (_training(s, "eval_strategy") in ("no", False) or not _has_validation(s))
        ),
    ),
    Rule(
        "data.validation_size",
        "data.validation is given, so nothing is split off: leave validation_size out",
        lambda s: s["data"].validation is not None and s["data"].validation_size != 0.1,
    ),
    Rule(
        "data.max_eval_samples",
        "there is no validation part to take rows from",
        lambda s: s["data"].max_eval_samples is not None and not _has_validation(s),
    ),
    Rule(
        "training.push_to_hub",
        "say where to: hub_model_id: user/name",
        lambda s: bool(_training(s, "push_to_hub")) and not _training(s, "hub_model_id"),
    ),
    *(
        Rule(
            f"training.{name}",
            "it has an effect only with push_to_hub: true",
            partial(_without_push, name),
        )
        for name in PUSH_FIELDS
        if name.startswith("hub_")
    ),
)


def conflicts(sections: Sections) -> Iterator[tuple[KeyPath, str]]:
    """Yield the key and the sentence of every rule that the recipe breaks."""
    task = sections["task"]
    for section, table in (("method", METHODS), ("loss", LOSSES)):
        choice = sections[section]
        row = None if choice is None else table.get(choice.name)
        if row is not None and not row.suits(task):
            yield (section,), f"{choice.name} goes with {', '.join(row.tasks)} only"
    for key, tasks in TASK_OPTIONS.items():
        if task not in tasks and _given(sections, key) is not None:
            yield tuple(key.split(".")), f"it goes with {', '.join(tasks)} only"
    for key in without_effect(sections):
        yield ("training", key), NO_TRAINER
    for rule in RULES:
        if rule.broken(sections):
            yield tuple(rule.key.split(".")), rule.says


def check_compatibility(sections: Sections, source: Source) -> None:
    """Raise one :class:`RecipeError` that lists every conflict."""
    problems = [
        f"{source.place(path)}: {'.'.join(map(str, path))}: {says}"
        for path, says in conflicts(sections)
    ]
    if problems:
        raise RecipeError(problems)


def compatibility_page() -> str:
    """Return the docs page: techniques by task, then the rules."""
    lines = ["# What goes with what", ""]
    lines += ["Made from the tables that the check itself reads; a test keeps both equal.", ""]
    lines += ["| technique | " + " | ".join(TASKS) + " |", "|---|" + "---|" * len(TASKS)]
    for name, row in {**METHODS, **LOSSES}.items():
        marks = ("yes" if row.suits(task) else "no" for task in TASKS)
        lines.append(f"| `{name}` | " + " | ".join(marks) + " |")
    lines += ["", "Every PEFT type goes with every task, but for what is said below.", ""]
    lines += ["| key | why a recipe is refused |", "|---|---|"]
    lines += [f"| `{rule.key}` | {rule.says} |" for rule in RULES]
    lines += [f"| `training` | {NO_TRAINER}, and where to push |"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(compatibility_page(), end="")
