# SPDX-License-Identifier: Apache-2.0
"""Options of the optimizer and the schedule that a recipe names, held against their tables.

Transformers reads the options that it looks for and passes over all others without a word.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from hftune.core.json_values import mismatch, show
from hftune.core.registry import Schema
from hftune.core.rules import RecipeView, training
from hftune.core.suggest import did_you_mean
from hftune.optimization.optim_args import is_malformed, values_of
from hftune.optimization.optimizers import ADAM, OPTIMIZERS
from hftune.optimization.optimizers import DEFAULT as ADAMW
from hftune.optimization.schedules import DEFAULT as LINEAR
from hftune.optimization.schedules import SCHEDULES

Problem = tuple[tuple[str, ...], str]

#: What optim_args is asked for, though TrainingArguments has a field for it.
SAID_ELSEWHERE = {
    "lr": "learning_rate",
    "weight_decay": "weight_decay",
    "betas": "adam_beta1 and training.adam_beta2",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "eps": "adam_epsilon",
}
ADAM_DEFAULTS = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
UNITS = "say unit: step, epoch or run, so that nobody takes the one for the other"


def option_problems(view: RecipeView) -> Iterator[Problem]:
    """Yield the key and the sentence of each option that is unknown, wrong or without effect."""
    optim = training(view, "optim", ADAMW)
    schedule = training(view, "lr_scheduler_type", LINEAR)
    yield from _optim_args(optim, training(view, "optim_args") or "")
    yield from _adam_fields(optim, view.training)
    yield from _scheduler_kwargs(schedule, training(view, "lr_scheduler_kwargs"))


def _optim_args(optim: str, text: str) -> Iterator[Problem]:
    if is_malformed(text):
        return  # a rule says so
    row, path = OPTIMIZERS[optim], ("training", "optim_args")
    for name, value in values_of(text).items():
        if name in row.args:
            if complaint := mismatch(value, row.args[name]):
                yield path, f"{name}: {complaint}"
        elif name in SAID_ELSEWHERE and not _is_unread(optim, name):
            yield path, f"{name}: it is said by training.{SAID_ELSEWHERE[name]}"
        else:
            yield path, f"{optim} takes no {name}{_known(name, row.args)}"


def _is_unread(optim: str, name: str) -> bool:
    """Whether the field of TrainingArguments for an option would have no effect either."""
    field = SAID_ELSEWHERE[name].split()[0]
    return field in ADAM and field not in _fields(optim)


def _fields(optim: str) -> tuple[str, ...]:
    """Fields of TrainingArguments that have an effect."""
    return (*OPTIMIZERS[optim].reads, *OPTIMIZERS[optim].rest_reads)


def _adam_fields(optim: str, given: Mapping[str, Any]) -> Iterator[Problem]:
    row = OPTIMIZERS[optim]
    for name, usual in ADAM_DEFAULTS.items():
        if name not in _fields(optim) and given.get(name, usual) != usual:
            own = name.removeprefix("adam_").replace("epsilon", "eps")
            hint = f"; say training.optim_args: {own}=..." if own in row.args else ""
            yield ("training", name), f"{optim} does not read it{hint}"


def _scheduler_kwargs(schedule: str, given: Any) -> Iterator[Problem]:
    row, path = SCHEDULES[schedule], ("training", "lr_scheduler_kwargs")
    if isinstance(given, str):
        yield path, f"expected a mapping, got {show(given)}"
        return
    kwargs = given or {}
    for name, value in kwargs.items():
        if name not in row.kwargs:
            yield path, f"{schedule} takes no {name}{_known(name, row.kwargs)}"
        elif complaint := mismatch(value, row.kwargs[name]):
            yield path, f"{name}: {complaint}"
    for name in row.required:
        if name not in kwargs:
            yield path, f"{schedule} needs {name}" + (f": {UNITS}" if name == "unit" else "")
    if "min_lr_rate" in row.kwargs and "min_lr" in row.kwargs:
        said = [name for name in ("min_lr", "min_lr_rate") if kwargs.get(name) is not None]
        if len(said) != 1:
            yield path, f"{schedule} needs one of min_lr and min_lr_rate, a share of the rate"


def _known(name: str, known: Mapping[str, Schema]) -> str:
    if near := did_you_mean(name, known):
        return near
    return f"; it takes {', '.join(known)}" if known else "; it takes none"
