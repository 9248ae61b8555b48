# SPDX-License-Identifier: Apache-2.0
"""Rules of the model and of the method that trains it."""

from hftune.methods import CHANGES_SHAPE, METHODS
from hftune.recipe.rules.rule import Rule, installed, option, quantized, training

LANGUAGE_MODELS_ONLY = ("adaption_prompt", "trainable_tokens")
PROMPT_METHODS = ("prompt_tuning", "p_tuning", "prefix_tuning", "adaption_prompt")
#: Schedules that are a factor by step, without restarts of their own.
SCALABLE = ("linear", "cosine", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
            "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay")  # fmt: skip
#: Optimizers that keep averages in the shape of the parameter.
PLAIN_STATES = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad")

MODEL_RULES = (
    Rule(
        "model.classifier_pooling",
        "only the head of text-classification pools",
        lambda s: s["task"] != "text-classification" and s["model"].classifier_pooling != "cls",
    ),
    Rule(
        "model.attn_implementation",
        "flash-attn is not installed; sdpa needs no package",
        lambda s: (
            s["model"].attn_implementation == "flash_attention_2" and not installed("flash_attn")
        ),
    ),
    Rule(
        "model.quantization",
        "bitsandbytes is not installed: pip install 'hftune[bnb]'",
        lambda s: quantized(s, "load_in_4bit", "load_in_8bit") and not installed("bitsandbytes"),
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
        lambda s: quantized(s, "load_in_8bit") and s["method"].name == "relora",
    ),
    Rule(
        "method.warm_start_steps",
        "a warm start trains every weight, and quantized ones cannot train",
        lambda s: s["model"].quantization is not None and bool(option(s, "warm_start_steps")),
    ),
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
            and option(s, "target_modules") in (None, "all-linear")
        ),
    ),
    Rule(
        "model.classifier_pooling",
        "mean pooling cannot see the virtual tokens of prompt methods; use cls",
        lambda s: s["model"].classifier_pooling == "mean" and s["method"].name in PROMPT_METHODS,
    ),
    Rule(
        "training.lr_scheduler_type",
        f"relora warms up again inside a schedule that it can scale: {', '.join(SCALABLE)}",
        lambda s: (
            s["method"].name == "relora"
            and training(s, "lr_scheduler_type", "linear") not in SCALABLE
        ),
    ),
    Rule(
        "training.optim",
        f"relora prunes the optimizer's state, which it knows of {', '.join(PLAIN_STATES)}",
        lambda s: (
            s["method"].name == "relora" and training(s, "optim", "adamw_torch") not in PLAIN_STATES
        ),
    ),
    Rule(
        "training.load_best_model_at_end",
        "adalora changes its ranks as it goes, so an earlier checkpoint no longer fits the model",
        lambda s: bool(training(s, "load_best_model_at_end")) and s["method"].name in CHANGES_SHAPE,
    ),
    Rule(
        "training.gradient_checkpointing",
        "prefix_tuning hands its prefix over as past keys, which checkpointing drops",
        lambda s: (
            s["method"].name == "prefix_tuning"
            and bool(
                training(s, "gradient_checkpointing") or training(s, "activation_checkpointing")
            )
        ),
    ),
    Rule(
        "method.init_lora_weights",
        "eva, corda and loftq compute their start from data or a second model; use the Python API",
        lambda s: option(s, "init_lora_weights") in ("eva", "corda", "loftq"),
    ),
)
