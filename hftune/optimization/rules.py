# SPDX-License-Identifier: Apache-2.0
"""Rules of optimizers, parameter groups, schedules, clipping and weight averaging."""

from functools import partial

from hftune.core.rules import RecipeView, Rule, training
from hftune.data.section import DataSection
from hftune.optimization.optim_args import values_of
from hftune.optimization.optimizers import DEFAULT as ADAMW
from hftune.optimization.optimizers import IN_PARTS, OPTIMIZERS
from hftune.optimization.schedules import DEFAULT as LINEAR
from hftune.optimization.schedules import SCHEDULES
from hftune.recipe.defaults import NO_SCHEDULE
from hftune.regularization.section import RegularizationSection

LORAPLUS_METHODS = ("lora", "qlora")
#: Methods that train pretrained weights themselves, which can stay close to where they were.
TRAINS_PRETRAINED = ("full", "freeze", "bitfit")
#: Methods that change weights by themselves, so that an average of steps is none of theirs.
REWRITES_WEIGHTS = ("relora", "diff_pruning", "prune", "adalora")
#: Optimizers that step inside the backward pass, where a gradient is gone at once.
IN_BACKWARD = ("lomo", "adalomo", *(name for name in OPTIMIZERS if name.endswith("_layerwise")))
AVERAGES_ITSELF = ("asgd", *(name for name in NO_SCHEDULE if name != "lbfgs"))


def _optim(view: RecipeView) -> str:
    return str(training(view, "optim", ADAMW))


def _schedule(view: RecipeView) -> str:
    usual = "constant" if _optim(view) in NO_SCHEDULE else LINEAR
    return str(training(view, "lr_scheduler_type", usual))


def _kwarg(view: RecipeView, name: str) -> object:
    given = training(view, "lr_scheduler_kwargs")
    return given.get(name) if isinstance(given, dict) else None


def _args(view: RecipeView) -> dict[str, object]:
    return values_of(training(view, "optim_args") or "")


def _has_groups(view: RecipeView) -> bool:
    return any(training(view, key) for key in ("layer_decay", "param_groups"))


def _lbfgs_with(key: str, least: float, view: RecipeView) -> bool:
    return _optim(view) == "lbfgs" and (training(view, key) or 0) > least


def _averages(view: RecipeView) -> bool:
    return view[RegularizationSection].weight_averaging is not None


def _penalized(name: str, view: RecipeView) -> bool:
    return name in view[RegularizationSection].penalties


def _average_option(name: str, view: RecipeView) -> bool:
    averaging = view[RegularizationSection].weight_averaging
    return averaging is not None and getattr(averaging, name) is not None


OPTIMIZATION_RULES = (
    Rule(
        "training.gradient_accumulation_steps",
        "lbfgs computes the loss of its batch several times a step; put all rows into one batch: "
        "per_device_train_batch_size",
        partial(_lbfgs_with, "gradient_accumulation_steps", 1),
    ),
    *(
        Rule(
            f"training.{key}",
            "lbfgs computes gradients of its own inside a step, which nothing clips or measures",
            partial(_lbfgs_with, key, 0),
        )
        for key in ("max_grad_norm", "max_grad_value")
    ),
    Rule(
        "training.fp16",
        "lbfgs computes the loss itself, where fp16 would have to scale it",
        lambda s: _optim(s) == "lbfgs" and bool(training(s, "fp16")),
    ),
    Rule(
        "training.weight_decay",
        "this optimizer takes none, like all of "
        + ", ".join(name for name, row in OPTIMIZERS.items() if not row.decays),
        lambda s: not OPTIMIZERS[_optim(s)].decays and training(s, "weight_decay", 0) > 0,
    ),
    Rule(
        "training.optim_args",
        "asgd needs t0, the step from which on weights are averaged; torch's own would be 1e6",
        lambda s: _optim(s) == "asgd" and "t0" not in _args(s),
    ),
    Rule(
        "training.optim",
        "this optimizer groups parameters by itself: leave out layer_decay and param_groups",
        lambda s: _has_groups(s) and not OPTIMIZERS[_optim(s)].groups,
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
        f"it goes with {' and '.join(LORAPLUS_METHODS)}, whose A and B it tells apart",
        lambda s: bool(training(s, "loraplus_lr_ratio")) and s.method.name not in LORAPLUS_METHODS,
    ),
    Rule(
        "training.loraplus_lr_ratio",
        "LoRA+ makes groups of its own: leave out layer_decay and param_groups",
        lambda s: bool(training(s, "loraplus_lr_ratio")) and _has_groups(s),
    ),
    Rule(
        "training.loraplus_lr_ratio",
        f"LoRA+ sets the rates of one optimizer, not of {', '.join(IN_PARTS)}, lbfgs or those that "
        "group parameters by themselves",
        lambda s: (
            bool(training(s, "loraplus_lr_ratio"))
            and (_optim(s) in IN_PARTS or not OPTIMIZERS[_optim(s)].groups)
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
            partial(lambda key, s: bool(training(s, key)) and _optim(s) in IN_BACKWARD, key),
        )
        for key in ("max_grad_value", "log_grad_norms")
    ),
    Rule(
        "training.log_grad_norms",
        "lbfgs computes gradients of its own inside a step, which nothing clips or measures",
        lambda s: bool(training(s, "log_grad_norms")) and _optim(s) == "lbfgs",
    ),
    Rule(
        "training.warmup_steps",
        "constant has no warmup: take constant_with_warmup",
        lambda s: (
            not SCHEDULES[_schedule(s)].warms
            and training(s, "warmup_steps", 0) > 0
            and not _optim(s).startswith("schedule_free")
        ),
    ),
    Rule(
        "training.lr_scheduler_type",
        "schedule_free optimizers average their steps in place of a schedule: take constant",
        lambda s: _optim(s).startswith("schedule_free") and _schedule(s) != "constant",
    ),
    Rule(
        "training.lr_scheduler_type",
        "this optimizer steps inside the backward pass, with the schedules of Transformers alone",
        lambda s: SCHEDULES[_schedule(s)].target is not None and _optim(s) in IN_BACKWARD,
    ),
    Rule(
        "training.lr_scheduler_type",
        "it follows the metric of the evaluations: set training.eval_strategy and data.validation",
        lambda s: (
            SCHEDULES[_schedule(s)].measures
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
        "regularization.weight_averaging",
        f"{', '.join(REWRITES_WEIGHTS)} set weights between steps, which an average would undo",
        lambda s: s.method.name in REWRITES_WEIGHTS and (_averages(s) or _optim(s) == "asgd"),
    ),
    Rule(
        "regularization.weight_averaging",
        f"the optimizer averages the weights itself: {', '.join(AVERAGES_ITSELF)}",
        lambda s: _averages(s) and _optim(s) in AVERAGES_ITSELF,
    ),
    Rule(
        "regularization.l2_sp",
        f"only {', '.join(TRAINS_PRETRAINED)} train pretrained weights; an adapter begins at 0 and "
        "is held there by l2",
        lambda s: _penalized("l2_sp", s) and s.method.name not in TRAINS_PRETRAINED,
    ),
    *(
        Rule(
            f"regularization.{name}",
            "bitfit trains biases, and a penalty counts weights of two dimensions or more; take "
            "l2_sp",
            partial(lambda name, s: _penalized(name, s) and s.method.name == "bitfit", name),
        )
        for name in ("l1", "l2")
    ),
    Rule(
        "regularization.weight_averaging",
        "decay is that of ema; in swa all steps count the same",
        lambda s: (
            (averaging := s[RegularizationSection].averaging) is not None
            and averaging.decay is not None
            and averaging.name == "swa"
        ),
    ),
)
