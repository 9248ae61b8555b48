# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules by name: those of Transformers, and those that it has no name for.

Literal and light: a recipe is held against the table without importing torch.
"""

from hftune.core.optimization_rows import ScheduleRow
from hftune.core.registry import COUNT, FROM_ZERO, NOT_NEGATIVE, POSITIVE, SHARE, Schema

OPEN_SHARE: Schema = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
UNIT: Schema = {"type": "string", "enum": ["step", "epoch", "run"]}


_CYCLES: dict[str, Schema] = {"num_cycles": POSITIVE}
_MIN_LR: dict[str, Schema] = {**_CYCLES, "min_lr": NOT_NEGATIVE, "min_lr_rate": SHARE}
_SHAPE: Schema = {"enum": ["linear", "cosine", "1-sqrt"]}
_MEASURING: dict[str, Schema] = {
    "mode": {"enum": ["min", "max"]},
    "factor": OPEN_SHARE,
    "patience": FROM_ZERO,
    "threshold": NOT_NEGATIVE,
    "threshold_mode": {"enum": ["rel", "abs"]},
    "cooldown": FROM_ZERO,
    "min_lr": NOT_NEGATIVE,
    "eps": NOT_NEGATIVE,
}
_OWN = "hftune.optimization.schedule_factors:"
_FOLLOWING = "hftune.optimization.metric_schedules:"
_CHECKS = "hftune.optimization.schedule_checks:"

SCHEDULES = {
    "linear": ScheduleRow(summary="Down to 0 in a straight line; the default."),
    "cosine": ScheduleRow(summary="Down to 0 along half a cosine.", kwargs=_CYCLES),
    "cosine_with_restarts": ScheduleRow(
        summary="Several cosines of one length, each from the top (num_cycles).",
        kwargs={"num_cycles": COUNT},
        example={"num_cycles": 3},
        check=f"{_CHECKS}check_cycles",
        scalable=False,
    ),
    "polynomial": ScheduleRow(
        summary="Down to lr_end along a power (power).",
        kwargs={"lr_end": NOT_NEGATIVE, "power": POSITIVE},
        example={"power": 2.0},
    ),
    "constant": ScheduleRow(summary="The same rate throughout, without warmup.", flat=True),
    "constant_with_warmup": ScheduleRow(summary="The same rate after the warmup."),
    "inverse_sqrt": ScheduleRow(
        summary="Falls with the square root of the step, without end.",
        kwargs={"timescale": COUNT},
    ),
    "reduce_lr_on_plateau": ScheduleRow(
        summary="Falls when the metric stops improving; needs evaluation.",
        target=f"{_FOLLOWING}WarmedPlateau",
        kwargs=_MEASURING,
        example={"patience": 2, "factor": 0.5},
        scalable=False,
        measures=True,
        default_patience=10,  # of torch.optim.lr_scheduler.ReduceLROnPlateau
    ),
    "cosine_with_min_lr": ScheduleRow(
        summary="A cosine down to min_lr or min_lr_rate.",
        kwargs=_MIN_LR,
        example={"min_lr_rate": 0.1},
        check=f"{_CHECKS}check_floor",
    ),
    "cosine_warmup_with_min_lr": ScheduleRow(
        summary="The same, with a warmup from warmup_lr_rate.",
        kwargs={**_MIN_LR, "warmup_lr_rate": SHARE},
        example={"min_lr_rate": 0.1, "warmup_lr_rate": 0.3},
        check=f"{_CHECKS}check_floor",
    ),
    "warmup_stable_decay": ScheduleRow(
        summary="Warmup, plateau, decay (num_decay_steps).",
        kwargs={
            **_CYCLES,
            "num_decay_steps": COUNT,
            "num_stable_steps": FROM_ZERO,
            "warmup_type": _SHAPE,
            "decay_type": _SHAPE,
            "min_lr_ratio": SHARE,
        },
        required=("num_decay_steps",),
        example={"num_decay_steps": 30},
        check=f"{_CHECKS}check_stages",
    ),
    "greedy": ScheduleRow(
        summary="Rises while the metric improves, falls when it stops; needs evaluation.",
        target=f"{_FOLLOWING}WarmedGreedy",
        kwargs={
            **_MEASURING,
            "warmup": FROM_ZERO,
            "max_lr": POSITIVE,
            "smooth": {"type": "boolean"},
            "window_size": COUNT,
            "reset_start": FROM_ZERO,
        },
        example={"patience": 2, "factor": 0.7, "min_lr": 0.0},
        check=f"{_CHECKS}check_bounds",
        scalable=False,
        measures=True,
    ),
    # Without a name in Transformers.
    "step": ScheduleRow(
        summary="Times gamma after each step_size steps, epochs or shares of the run.",
        target=f"{_OWN}step",
        kwargs={"unit": UNIT, "step_size": POSITIVE, "gamma": OPEN_SHARE},
        required=("unit", "step_size"),
        example={"unit": "run", "step_size": 0.3, "gamma": 0.5},
    ),
    "multistep": ScheduleRow(
        summary="Times gamma at each of the milestones.",
        target=f"{_OWN}multistep",
        kwargs={
            "unit": UNIT,
            "milestones": {"type": "array", "items": POSITIVE},
            "gamma": OPEN_SHARE,
        },
        required=("unit", "milestones"),
        example={"unit": "run", "milestones": [0.5, 0.75], "gamma": 0.1},
    ),
    "exponential": ScheduleRow(
        summary="Times gamma in each step, each epoch, or over the whole run.",
        target=f"{_OWN}exponential",
        kwargs={"unit": UNIT, "gamma": OPEN_SHARE},
        required=("unit", "gamma"),
        example={"unit": "run", "gamma": 0.05},
    ),
    "inverse_time": ScheduleRow(
        summary="Divided by 1 + k t, where t counts steps, epochs or shares of the run.",
        target=f"{_OWN}inverse_time",
        kwargs={"unit": UNIT, "k": POSITIVE},
        required=("unit", "k"),
        example={"unit": "run", "k": 10},
    ),
    "one_cycle": ScheduleRow(
        summary="Up from a fraction during the warmup, down to nearly nothing after it.",
        target=f"{_OWN}one_cycle",
        kwargs={
            "div_factor": POSITIVE,
            "final_div_factor": POSITIVE,
            "anneal_strategy": {"enum": ["cos", "linear"]},
        },
        warmup=0.3,  # its rise, as torch's pct_start
        ends_low=True,
    ),
    "cosine_warm_restarts": ScheduleRow(
        summary="Cosines from the top, each T_mult times as long as the one before (SGDR).",
        target=f"{_OWN}cosine_warm_restarts",
        kwargs={"unit": UNIT, "T_0": POSITIVE, "T_mult": COUNT, "min_lr_rate": SHARE},
        required=("unit", "T_0"),
        example={"unit": "step", "T_0": 13, "T_mult": 2},
        scalable=False,
    ),
}

DEFAULT = "linear"
