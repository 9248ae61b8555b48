# SPDX-License-Identifier: Apache-2.0
"""Rules of single methods."""

from hftune.core.rules import RecipeView, Rule, option, training
from hftune.methods import ROWS
from hftune.models.section import ModelSection

#: Fields of diff_pruning's gates and their defaults, which a resolved recipe spells out.
GATES = {
    "structured": True,
    "alpha_init": 5.0,
    "gate_lr_ratio": None,
    "penalty_schedule": "exponential",
}


def _unfreezes(view: RecipeView) -> bool:
    return bool(option(view, "head_only_steps") or option(view, "unfreeze_every"))


def _reentrant(view: RecipeView) -> bool:
    given = [training(view, f"{name}_checkpointing_kwargs") for name in
             ("activation", "gradient")]  # fmt: skip
    return any(isinstance(item, dict) and item.get("use_reentrant") for item in given)


def _no_checkpointing(name: str, why: str) -> Rule:
    keys = ("gradient_checkpointing", "activation_checkpointing")
    return Rule(
        "training.gradient_checkpointing",
        f"{name} {why}",
        lambda s: s.method.name == name and any(training(s, key) for key in keys),
    )


METHOD_RULES = (
    *(
        _no_checkpointing(name, row.no_checkpointing)
        for name, row in ROWS.items()
        if row.no_checkpointing is not None
    ),
    Rule(
        "model.quantization",
        "relora merges into 4-bit weights or whole ones, not into 8-bit ones",
        lambda s: s[ModelSection].quantizes("load_in_8bit") and s.method.name == "relora",
    ),
    Rule(
        "method.warm_start_steps",
        "a warm start trains every weight, and quantized ones cannot train",
        lambda s: s[ModelSection].quantization is not None and bool(option(s, "warm_start_steps")),
    ),
    Rule(
        "method",
        "osf takes every linear layer, the head of a tagger too; name method.target_modules",
        lambda s: (
            s.task_row.label_kind == "token"
            and s.method.name == "osf"
            and option(s, "target_modules") in (None, "all-linear")
        ),
    ),
    Rule(
        "training.load_best_model_at_end",
        "adalora changes its ranks as it goes, so an earlier checkpoint no longer fits the model",
        lambda s: bool(training(s, "load_best_model_at_end")) and s.method_row.changes_shape,
    ),
    Rule(
        "method.target_r",
        "the budget of adalora falls from init_r to target_r, so target_r must be below init_r",
        lambda s: s.method.name == "adalora" and option(s, "target_r") >= option(s, "init_r"),
    ),
    Rule(
        "method.r",
        "adalora begins with the rank init_r and has no r",
        lambda s: s.method.name == "adalora" and option(s, "r") not in (None, 8),
    ),
    Rule(
        "method.tinit",
        "tinit and tfinal are whole steps; below 1 they are shares of the run",
        lambda s: (
            s.method.name == "adalora"
            and any(
                (option(s, name) or 0) > 1 and option(s, name) % 1 for name in ("tinit", "tfinal")
            )
        ),
    ),
    Rule(
        "method.total_step",
        "the run fills in total_step and rank_pattern of adalora: leave them out",
        lambda s: (
            s.method.name == "adalora"
            and any(option(s, name) is not None for name in ("total_step", "rank_pattern"))
        ),
    ),
    Rule(
        "method.prompt_tuning_init_text",
        "prompt_tuning_init: TEXT starts from a text: give one that is not empty",
        lambda s: (
            option(s, "prompt_tuning_init") == "TEXT"
            and not (option(s, "prompt_tuning_init_text") or "").strip()
        ),
    ),
    Rule(
        "method.prompt_tuning_init_text",
        "the text has an effect only with prompt_tuning_init: TEXT",
        lambda s: (
            option(s, "prompt_tuning_init_text") is not None
            and option(s, "prompt_tuning_init") != "TEXT"
        ),
    ),
    Rule(
        "method.tokenizer_name_or_path",
        "the text is read by the model's own tokenizer: leave out the name and tokenizer_kwargs",
        lambda s: any(
            option(s, name) is not None for name in ("tokenizer_name_or_path", "tokenizer_kwargs")
        ),
    ),
    Rule(
        "method.encoder_hidden_size",
        "it is the width of the prefix's network, which prefix_projection: true makes",
        lambda s: (
            s.method.name == "prefix_tuning"
            and option(s, "encoder_hidden_size") is not None
            and not option(s, "prefix_projection")
        ),
    ),
    Rule(
        "method.encoder_reparameterization_type",
        "encoder_num_layers and encoder_dropout are those of an LSTM; the MLP of p_tuning has "
        "three layers and no dropout",
        lambda s: (
            s.method.name == "p_tuning"
            and option(s, "encoder_reparameterization_type") != "LSTM"
            and (
                option(s, "encoder_num_layers") not in (None, 2)
                or bool(option(s, "encoder_dropout"))
            )
        ),
    ),
    Rule(
        "method.init_lora_weights",
        "eva, corda and loftq compute their start from data or a second model; use the Python API",
        lambda s: option(s, "init_lora_weights") in ("eva", "corda", "loftq"),
    ),
    Rule(
        "model.quantization",
        "diff_pruning adds to single weights, which a quantized base no longer has",
        lambda s: s[ModelSection].quantization is not None and s.method.name == "diff_pruning",
    ),
    Rule(
        "method.mode",
        "l1 has no gates: leave out structured, alpha_init, gate_lr_ratio and penalty_schedule",
        lambda s: (
            option(s, "mode") == "l1"
            and any(option(s, name) not in (None, usual) for name, usual in GATES.items())
        ),
    ),
    Rule(
        "method.include_norm",
        "target_modules says which modules get a difference, norms too",
        lambda s: option(s, "include_norm") is False and option(s, "target_modules") is not None,
    ),
    Rule(
        "method.finishing_lr_ratio",
        "with projection_ratio: 1 no step follows the projection",
        lambda s: (
            option(s, "finishing_lr_ratio") not in (None, 10.0)
            and option(s, "projection_ratio") == 1
        ),
    ),
    Rule(
        "model.quantization",
        "qlora has a 4-bit base; take lora for 8 bits, or for none",
        lambda s: (
            s.method.name == "qlora"
            and (
                s[ModelSection].quantizes("load_in_8bit")
                or not s[ModelSection].quantizes("load_in_4bit")
            )
        ),
    ),
    Rule(
        "training.ddp_find_unused_parameters",
        "a schedule of freeze needs it: leave it out, or say true",
        lambda s: _unfreezes(s) and training(s, "ddp_find_unused_parameters") is False,
    ),
    Rule(
        "training.ddp_static_graph",
        "a schedule of freeze changes what trains",
        lambda s: _unfreezes(s) and bool(training(s, "ddp_static_graph")),
    ),
    Rule(
        "training.activation_checkpointing_kwargs",
        "use_reentrant gives no gradient to layers above a frozen bottom; leave it out",
        lambda s: s.method_row.frozen_bottom and _reentrant(s),
    ),
    Rule(
        "method.head_only_rate",
        "it has an effect only with head_only_steps or unfreeze_every",
        lambda s: option(s, "head_only_rate") not in (None, 1) and not _unfreezes(s),
    ),
)
