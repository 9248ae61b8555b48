# SPDX-License-Identifier: Apache-2.0
"""Rules of optimizers, parameter groups, schedules and clipping."""

from functools import partial

from hftune.core.optimization_rows import OptimizerRow
from hftune.core.rules import RecipeView, Rule, option, training
from hftune.data.section import DataSection
from hftune.methods import ROWS
from hftune.optimization.optim_args import values_of
from hftune.optimization.optimizers import OPTIMIZERS
from hftune.optimization.schedules import SCHEDULES

LORA_PAIRS = " and ".join(name for name, row in ROWS.items() if row.has_lora_pairs)
#: Optimizers whose step computes the loss of its batch several times.
CLOSURE = ", ".join(name for name, row in OPTIMIZERS.items() if row.closure)
IN_PARTS = ", ".join(name for name, row in OPTIMIZERS.items() if row.first_part is not None)
PLAIN_STATES = ", ".join(name for name, row in OPTIMIZERS.items() if row.plain_states)
FLAT = ", ".join(name for name, row in SCHEDULES.items() if row.flat)
SCALABLE = ", ".join(name for name, row in SCHEDULES.items() if row.scalable)
RESTARTING = ", ".join(name for name, row in ROWS.items() if row.restarts)


def _kwarg(view: RecipeView, name: str) -> object:
    given = training(view, "lr_scheduler_kwargs")
    return given.get(name) if isinstance(given, dict) else None


def _args(view: RecipeView) -> dict[str, object]:
    return values_of(training(view, "optim_args") or "")


def _has_groups(view: RecipeView) -> bool:
    return any(training(view, key) for key in ("layer_decay", "param_groups"))


def _closure_with(key: str, least: float, view: RecipeView) -> bool:
    return view.optimizer_row.closure and (training(view, key) or 0) > least


def _lacks(optimizer: OptimizerRow, option: str, view: RecipeView) -> bool:
    return view.optimizer_row is optimizer and option not in _args(view)


OPTIMIZATION_RULES = (
    Rule(
        "training.gradient_accumulation_steps",
        f"{CLOSURE} computes the loss of its batch several times a step; put all rows into one "
        "batch: per_device_train_batch_size",
        partial(_closure_with, "gradient_accumulation_steps", 1),
    ),
    *(
        Rule(
            f"training.{key}",
            f"{CLOSURE} computes gradients of its own inside a step, which nothing clips or "
            "measures",
            partial(_closure_with, key, 0),
        )
        for key in ("max_grad_norm", "max_grad_value")
    ),
    Rule(
        "training.fp16",
        f"{CLOSURE} computes the loss itself, where fp16 would have to scale it",
        lambda s: s.optimizer_row.closure and bool(training(s, "fp16")),
    ),
    Rule(
        "training.weight_decay",
        "this optimizer takes none, like all of "
        + ", ".join(name for name, row in OPTIMIZERS.items() if not row.decays),
        lambda s: not s.optimizer_row.decays and training(s, "weight_decay", 0) > 0,
    ),
    *(
        Rule(
            "training.optim_args",
            f"{name} needs {arg}, {reason}",
            partial(_lacks, row, arg),
        )
        for name, row in OPTIMIZERS.items()
        for arg, reason in row.required_args.items()
    ),
    Rule(
        "training.optim",
        "this optimizer groups parameters by itself: leave out layer_decay and param_groups",
        lambda s: _has_groups(s) and not s.optimizer_row.groups,
    ),
    Rule(
        "training.param_groups",
        "each group needs lr or weight_decay; without them it would be like all others",
        lambda s: any(
            group.get("lr") is None and group.get("weight_decay") is None
            for group in training(s, "param_groups") or ()
        ),
    ),
    Rule(
        "training.loraplus_lr_ratio",
        f"it goes with {LORA_PAIRS}, whose A and B it tells apart",
        lambda s: bool(training(s, "loraplus_lr_ratio")) and not s.method_row.has_lora_pairs,
    ),
    Rule(
        "training.loraplus_lr_ratio",
        "LoRA+ makes groups of its own: leave out layer_decay and param_groups",
        lambda s: bool(training(s, "loraplus_lr_ratio")) and _has_groups(s),
    ),
    Rule(
        "training.loraplus_lr_ratio",
        f"LoRA+ sets the rates of one optimizer, not of {IN_PARTS}, {CLOSURE} or those that group "
        "parameters by themselves",
        lambda s: (
            bool(training(s, "loraplus_lr_ratio"))
            and (s.optimizer_row.first_part is not None or not s.optimizer_row.groups)
        ),
    ),
    Rule(
        "training.loraplus_lr_embedding",
        "it has an effect only with loraplus_lr_ratio",
        lambda s: (
            bool(training(s, "loraplus_lr_embedding")) and not training(s, "loraplus_lr_ratio")
        ),
    ),
    Rule(
        "training.learning_rate_scaling",
        "with auto_find_batch_size the number of rows a step is not known",
        lambda s: bool(
            training(s, "learning_rate_scaling") and training(s, "auto_find_batch_size")
        ),
    ),
    *(
        Rule(
            f"training.{key}",
            "this optimizer steps inside the backward pass, where no gradient is left to look at",
            partial(lambda key, s: bool(training(s, key)) and s.optimizer_row.in_backward, key),
        )
        for key in ("max_grad_value", "log_grad_norms")
    ),
    Rule(
        "training.log_grad_norms",
        f"{CLOSURE} computes gradients of its own inside a step, which nothing clips or measures",
        lambda s: bool(training(s, "log_grad_norms")) and s.optimizer_row.closure,
    ),
    Rule(
        "training.warmup_steps",
        f"{FLAT} has no warmup: take constant_with_warmup",
        lambda s: (
            s.schedule_row.flat
            and training(s, "warmup_steps", 0) > 0
            and not s.optimizer_row.own_schedule
        ),
    ),
    Rule(
        "training.lr_scheduler_type",
        f"schedule_free optimizers average their steps in place of a schedule: take {FLAT}",
        lambda s: s.optimizer_row.own_schedule and not s.schedule_row.flat,
    ),
    Rule(
        "training.lr_scheduler_type",
        "this optimizer steps inside the backward pass, with the schedules of Transformers alone",
        lambda s: s.schedule_row.own and s.optimizer_row.in_backward,
    ),
    Rule(
        "training.lr_scheduler_type",
        "it follows the metric of the evaluations: set training.eval_strategy and data.validation",
        lambda s: (
            s.schedule_row.measures
            and (training(s, "eval_strategy") in ("no", False) or not s[DataSection].has_validation)
        ),
    ),
    Rule(
        "training.lr_scheduler_kwargs",
        "a stream has no epochs: say unit: step or unit: run",
        lambda s: _kwarg(s, "unit") == "epoch" and s[DataSection].streaming,
    ),
    Rule(
        "training.lr_scheduler_kwargs",
        "with auto_find_batch_size the steps of an epoch are not known: say unit: run",
        lambda s: (
            _kwarg(s, "unit") in ("step", "epoch") and bool(training(s, "auto_find_batch_size"))
        ),
    ),
    Rule(
        "training.lr_scheduler_type",
        f"{RESTARTING} warms up again inside a schedule that it can scale: {SCALABLE}",
        lambda s: s.method_row.restarts and not s.schedule_row.scalable,
    ),
    Rule(
        "training.optim",
        f"{RESTARTING} prunes the optimizer's state, which it knows of {PLAIN_STATES}",
        lambda s: s.method_row.restarts and not s.optimizer_row.plain_states,
    ),
    Rule(
        "training.lr_scheduler_type",
        f"head_only_rate multiplies a schedule that it can scale: {SCALABLE}",
        lambda s: option(s, "head_only_rate") not in (None, 1) and not s.schedule_row.scalable,
    ),
)
