# SPDX-License-Identifier: Apache-2.0
"""Rules of ``training``: early stopping, optimizer, checkpoints, precision, pushing."""

from functools import partial

from hftune.core.rules import RecipeView, Rule, installed, training
from hftune.data.section import DataSection
from hftune.methods import ROWS
from hftune.optimization.optim_args import is_malformed
from hftune.recipe.training_fields import FITTED_TRAINING, PUSH_FIELDS

#: Losses of liger-kernel; a model calls them only if it gets labels.
LIGER_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")
#: Transformers' default of ``save_steps``; a resolved recipe has it with any ``save_strategy``.
DEFAULT_SAVE_STEPS = 500
#: Methods that select the final weights late in the run.
SETTLE_LATE = [name for name, row in ROWS.items() if row.settles_late]
FITTED = ", ".join(name for name, row in ROWS.items() if row.fitted)
NO_TRAINER = f"no Trainer runs for a {FITTED}, which reads {', '.join(FITTED_TRAINING)} alone"


def training_without_trainer(view: RecipeView) -> list[str]:
    """Return the keys of ``training`` that have no effect because no Trainer runs."""
    if not view.method_row.fitted:
        return []
    return sorted(view.training.keys() - {*FITTED_TRAINING, *PUSH_FIELDS})


def _saves_otherwise(view: RecipeView) -> bool:
    evaluates = training(
        view, "eval_strategy", "epoch" if view[DataSection].has_validation else "no"
    )
    given = training(view, "save_steps", DEFAULT_SAVE_STEPS)
    saves = training(view, "save_strategy", evaluates)
    return bool(saves != "steps" and given != DEFAULT_SAVE_STEPS)


def _liger_losses(view: RecipeView) -> bool:
    return any((training(view, "liger_kernel_config") or {}).get(name) for name in LIGER_LOSSES)


def _without_push(name: str, view: RecipeView) -> bool:
    return name in view.training and not training(view, "push_to_hub")


def _keeps_best(view: RecipeView) -> bool:
    evaluates = training(view, "eval_strategy", "epoch")
    saves = training(view, "save_strategy", evaluates) in ("best", evaluates)
    return bool(training(view, "load_best_model_at_end", saves))


def _stops_early(view: RecipeView) -> bool:
    return training(view, "early_stopping_patience") is not None


TRAINING_RULES = (
    Rule(
        "training.early_stopping_patience",
        "it counts evaluations: leave training.eval_strategy at epoch or steps, and have "
        "validation rows",
        lambda s: (
            _stops_early(s)
            and (training(s, "eval_strategy") in ("no", False) or not s[DataSection].has_validation)
        ),
    ),
    Rule(
        "training.early_stopping_patience",
        "its last evaluations are not the best: leave training.load_best_model_at_end at true, "
        "and save_strategy as eval_strategy",
        lambda s: _stops_early(s) and not s.method_row.settles_late and not _keeps_best(s),
    ),
    Rule(
        "training.early_stopping_patience",
        f"{', '.join(SETTLE_LATE)} decide late in the run which weights stay, and early stopping "
        "could end the run before that",
        lambda s: _stops_early(s) and s.method_row.settles_late,
    ),
    Rule(
        "training.early_stopping_threshold",
        "it goes with early_stopping_patience",
        lambda s: training(s, "early_stopping_threshold") is not None and not _stops_early(s),
    ),
    Rule(
        "training.optim_args",
        "it is written key=value, several with commas between them: momentum=0.9,nesterov=true",
        lambda s: is_malformed(training(s, "optim_args") or ""),
    ),
    Rule(
        "training.save_steps",
        "it has an effect only with save_strategy: steps",
        _saves_otherwise,
    ),
    Rule(
        "training.fp16",
        "fp16 and bf16 exclude each other",
        lambda s: bool(training(s, "fp16") and training(s, "bf16")),
    ),
    Rule(
        "training.fp16",
        "fp16 does nothing on a CPU; use bf16 where the processor has it, or neither",
        lambda s: bool(training(s, "fp16") and training(s, "use_cpu")),
    ),
    Rule(
        "training.use_liger_kernel",
        "liger-kernel is not installed: pip install 'hftune[liger]'",
        lambda s: bool(training(s, "use_liger_kernel")) and not installed("liger_kernel"),
    ),
    Rule(
        "training.liger_kernel_config",
        "it has an effect only with use_liger_kernel: true",
        lambda s: bool(training(s, "liger_kernel_config")) and not training(s, "use_liger_kernel"),
    ),
    Rule(
        "training.liger_kernel_config",
        f"{' and '.join(LIGER_LOSSES)} would never be called: a model is given no labels here, and "
        "the loss sees labelled positions alone, in chunks, anyway",
        _liger_losses,
    ),
    Rule(
        "training.push_to_hub",
        "say where to: hub_model_id: user/name",
        lambda s: bool(training(s, "push_to_hub")) and not training(s, "hub_model_id"),
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
