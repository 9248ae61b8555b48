# SPDX-License-Identifier: Apache-2.0
"""A row of a family's literal table: data that imports nothing until it is resolved."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

#: Values of ``config.problem_type`` of a classifier, in Transformers' own words.
SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"

#: JSON Schema of one value.
Schema = dict[str, Any]

#: Kinds of values that options have.
NUMBER: Schema = {"type": "number"}
SWITCH: Schema = {"type": "boolean"}
WORD: Schema = {"type": "string"}
NOT_NEGATIVE: Schema = {"type": "number", "minimum": 0}
POSITIVE: Schema = {"type": "number", "exclusiveMinimum": 0}
BELOW_ONE: Schema = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
COUNT: Schema = {"type": "integer", "minimum": 1}
FROM_ZERO: Schema = {"type": "integer", "minimum": 0}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A technique by name with its options, as in ``{name: lora, r: 8}``."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One technique of a family.

    Attributes:
        target: Where it lives, as ``package.module:object``.
        summary: One line for people.
        options: The dataclass whose fields are its options, where that is not the target.
        tasks: The tasks it suits; all of them when empty.
    """

    target: str
    summary: str
    options: str | None = None
    tasks: tuple[str, ...] = ()

    def resolve(self) -> Any:
        """Import the module and return the object."""
        return named(self.target)

    def resolve_options(self) -> Any:
        """Import the module and return the dataclass of the options."""
        return named(self.options or self.target)

    def suits(self, task: str) -> bool:
        """Tell whether the technique goes with ``task``."""
        return not self.tasks or task in self.tasks


@dataclass(frozen=True, kw_only=True)
class TaskRow(Row):
    """One of the Hub's tasks."""


def named(place: str) -> Any:
    """Import what ``package.module:object`` names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True, kw_only=True)
class MethodRow(Row):
    """One method. What is said here is held by tests/methods/test_conformance.py.

    A field that starts with ``no_`` is None, or says why not, to follow the method's name.

    Attributes:
        saves_adapter: Whether the result lies beside a base that keeps every bit; else it is a
            whole model.
        starts_at_base: Whether the model's output is that of the base before the first step.
        rewrites_base: Whether it also changes weights that get no gradient, by merging into them.
        draws: Whether a forward pass in training draws noise of its own, on each process another.
        fitted: Whether it is fitted on features; no Trainer runs.
        quantizes: Whether its base is kept in 4 bits, if the recipe does not say otherwise.
        changes_shape: Whether its weights have other shapes at the end than at the start.
        no_merge: Why the adapter cannot be put into its base.
        no_unmerge: Why it cannot be taken out again.
        no_checkpointing: Why activations cannot be computed again in the backward pass.
        no_images: Why it cannot work on a model of images.
        no_mixed_widths: Why all weights that it adapts must have one shape.
        sharded: Whether tests compare a sharded run with one of a whole model; others are refused.
    """

    saves_adapter: bool = False
    starts_at_base: bool = True
    rewrites_base: bool = False
    draws: bool = False
    fitted: bool = False
    quantizes: bool = False
    changes_shape: bool = False
    no_merge: str | None = None
    no_unmerge: str | None = None
    no_checkpointing: str | None = None
    no_images: str | None = None
    no_mixed_widths: str | None = None
    sharded: bool = False

    @property
    def merges(self) -> bool:
        """Tell whether there is an adapter that can be put into its base."""
        return self.saves_adapter and self.no_merge is None

    @property
    def leaves(self) -> str:
        """Say what a run leaves."""
        if self.fitted:
            return "a fitted classifier"
        if not self.saves_adapter:
            return "a whole model"
        return "an adapter" if self.merges else "an adapter that cannot be merged"

    @property
    def cannot(self) -> dict[str, str]:
        """Return what it cannot do -> why."""
        reasons = {
            "be merged": self.no_merge,
            "be taken out of a merged base": self.no_unmerge,
            "recompute activations": self.no_checkpointing,
            "work on images": self.no_images,
            "adapt weights of several shapes": self.no_mixed_widths,
        }
        return {what: why for what, why in reasons.items() if why is not None}


@dataclass(frozen=True, kw_only=True)
class OptimizerRow:
    """A value of ``training.optim``.

    Attributes:
        summary: One line for people.
        target: The class, as ``package.module:Class``; none where Transformers makes it.
        package: What must be installed beside hftune, as pip calls it.
        args: What ``training.optim_args`` may say, as JSON Schema.
        handed: Those of ``args`` that Transformers leaves out or hands over as text, so that hftune
            hands them to the class; all of them where there is a target.
        settings: What is handed to the class otherwise than its defaults.
        reads: Fields of ``TrainingArguments`` that it takes, beside the learning rate.
        decays: Whether it takes ``training.weight_decay``.
        groups: Whether hftune may say which parameters are in which group.
        state_bytes: Of its state, for each parameter that trains.
        learning_rate: The default, where that of the method would be of another order.
    """

    summary: str
    target: str | None = None
    package: str | None = None
    args: Mapping[str, Schema] = field(default_factory=dict)
    handed: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    decays: bool = True
    groups: bool = True
    state_bytes: float = 8
    learning_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class LossRow(Row):
    """A loss.

    Attributes:
        problem_types: What ``config.problem_type`` of a classifier it goes with.
        smooths: Whether ``training.label_smoothing_factor`` goes with it.
        compares_rows: Whether it compares the rows of a micro-batch, so that its gradient depends
            on how a batch is split.
    """

    problem_types: tuple[str, ...] = (SINGLE_LABEL,)
    smooths: bool = False
    compares_rows: bool = False


@dataclass(frozen=True, kw_only=True)
class SchemeRow:
    """A value of ``initialization.name``.

    Attributes:
        summary: One line for people.
        target: The function that draws in place, as ``package.module:name``; none where it takes
            more than a tensor to know.
        options: Arguments of it that a recipe may say.
        settings: Those that a recipe leaves out, where the function's own defaults are of no use.
        draws: ``matrices`` where it reckons with the two sides of a weight, ``vectors`` where it
            is made for one dimension, else any shape.
    """

    summary: str
    target: str | None = None
    options: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    draws: Literal["matrices", "vectors", "any"] = "any"


@dataclass(frozen=True, kw_only=True)
class ScheduleRow:
    """A value of ``training.lr_scheduler_type``.

    Attributes:
        summary: One line for people.
        target: The function of the factor, as ``package.module:name``; none where Transformers
            makes the schedule.
        kwargs: What ``training.lr_scheduler_kwargs`` may say, as JSON Schema.
        required: What it must say.
        example: Such options, as the picture of all schedules has them.
        warms: Whether ``training.warmup_steps`` counts.
        measures: Whether it follows the metric of the evaluations.
    """

    summary: str
    target: str | None = None
    kwargs: Mapping[str, Schema] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    example: Mapping[str, Any] = field(default_factory=dict)
    warms: bool = True
    measures: bool = False
