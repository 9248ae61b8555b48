# SPDX-License-Identifier: Apache-2.0
"""Rows of the tables of techniques. A row names its class, and imports it only when resolved."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from hftune.core.rules import Rule
    from hftune.core.task_rows import TaskRow

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

#: Ranges of numbers, for options whose type comes from a dataclass.
ABOVE_ZERO: Schema = {"exclusiveMinimum": 0}
AT_LEAST_ZERO: Schema = {"minimum": 0}
AT_LEAST_ONE: Schema = {"minimum": 1}
FRACTION: Schema = {"minimum": 0, "exclusiveMaximum": 1}
WITHIN: Schema = {"exclusiveMinimum": 0, "exclusiveMaximum": 1}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A technique by name with its options, as in ``{name: lora, r: 8}``.

    Example:
        >>> Choice(name="lora", options={"r": 8}).options["r"]
        8
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)


#: Kinds of labels: a class, several or a number for each row, a class for each token, another text,
#: or the next token of the row itself.
LabelKind = Literal["class", "token", "text", "next_token"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One technique of a family.

    Attributes:
        target: Its class or function, as ``package.module:name``.
        summary: One line for people.
        options: The dataclass whose fields are its options, if it is not the target.
        labels: Kinds of labels that it suits; all of them if empty.
        default: Whether it is used if a recipe names none.
        ranges: Option -> JSON Schema keywords that its type does not express, such as a minimum.
        rules: Rules about its own options.

    Example:
        >>> Row(target="collections:Counter", summary="A counter.").resolve()("aab")["a"]
        2
    """

    target: str
    summary: str
    options: str | None = None
    labels: tuple[LabelKind, ...] = ()
    default: bool = False
    ranges: Mapping[str, Schema] = field(default_factory=dict)
    rules: "tuple[Rule, ...]" = ()

    def resolve(self) -> Any:
        """Import the module and return the class or function."""
        return named(self.target)

    def resolve_options(self) -> Any:
        """Import the module and return the dataclass of the options."""
        return named(self.options or self.target)

    def suits(self, task: "TaskRow") -> bool:
        """Tell whether the technique can be used with a task's kind of labels."""
        return not self.labels or task.label_kind in self.labels


def named(place: str) -> Any:
    """Import and return the object that ``package.module:name`` refers to.

    Example:
        >>> named("math:sqrt")(9)
        3.0
    """
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def default_name(table: Mapping[str, Row]) -> str:
    """Return the name of the technique that is used if a recipe names none.

    Example:
        >>> a, b = Row(target="m:a", summary="A."), Row(target="m:b", summary="B.", default=True)
        >>> default_name({"a": a, "b": b})
        'b'
    """
    return next(name for name, row in table.items() if row.default)


@dataclass(frozen=True, kw_only=True)
class MethodRow(Row):
    """A method. tests/methods/test_conformance.py checks these facts.

    A field that starts with ``no_`` is None, or a reason that can follow the method's name.

    Attributes:
        saves: Result of a run: a whole ``model``, or an ``adapter`` or fitted ``classifier`` for an
            unchanged base.
        trains: Trained parameters: pretrained ``weights``, pretrained ``biases``, the ``head``, an
            ``adapter``, or nothing of the model but a classifier on its ``features``.
        learning_rate: The default learning rate.
        learning_rate_writing: The default learning rate of language models, if it is another.
        defaults: Defaults of options that differ from those of the dataclass.
        training_defaults: Fields of ``training`` that its paper sets.
        quantization: Fields of ``model.quantization`` that it sets, if it quantizes its base.
        device_defaults: Function that returns further defaults for a device, as
            ``package.module:name``.
        starter_options: Options that a first recipe shows: option, value, comment.
        required: Options that a recipe must give.
        virtual_tokens: Where it puts virtual tokens before those of a row: in the ``input``, or in
            the ``cache`` of keys and values; None if it puts none there.
        sets_weights: Whether it sets weights between optimizer steps.
        settles_late: Whether it decides late in the run which weights stay.
        has_lora_pairs: Whether it trains pairs of LoRA's matrices A and B.
        frozen_bottom: Whether the lowest layers may be frozen while those above them train.
        recompute_tested: Whether tests compare a run that recomputes activations with one that
            does not; only then hftune switches recomputation on by itself.
        fp8: Whether its matrix products can run in fp8.
        cheaper: A method that takes less memory, to suggest if a run may not fit.
        starts_at_base: Whether the model's output is that of the base before the first step.
        draws: Whether a forward pass in training draws noise, different on each process.
        runner: Function that fits the method without the Trainer, as ``package.module:name``; None
            if the Trainer trains it. See :mod:`hftune.methods.runner`.
        changes_shape: Whether its weights have other shapes at the end than at the start.
        restarts: Whether it restarts within a run: it merges its update into the frozen base,
            prunes the optimizer's state and warms up again.
        no_merge: Why the adapter cannot be merged into its base.
        no_unmerge: Why a merged adapter cannot be taken out of its base again.
        no_checkpointing: Why activations cannot be recomputed in the backward pass.
        no_images: Why it cannot train a model of images.
        no_mixed_widths: Why all weights that it adapts must have one shape.
        no_config_switch: Switch of a model's config -> why it cannot be on.
        sharded: Whether tests compare a sharded run with one of a whole model; others are refused.

    Example:
        >>> row = MethodRow(target="m:LoRA", summary="LoRA.", saves="adapter")
        >>> row.needs_base, row.merges, row.leaves
        (True, True, 'an adapter')
    """

    saves: Literal["model", "adapter", "classifier"] = "model"
    trains: Literal["weights", "biases", "head", "adapter", "features"] = "weights"
    learning_rate: float = 5e-4
    learning_rate_writing: float | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    training_defaults: Mapping[str, Any] = field(default_factory=dict)
    quantization: Mapping[str, Any] | None = None
    device_defaults: str | None = None
    starter_options: tuple[tuple[str, Any, str], ...] = ()
    required: tuple[str, ...] = ()
    virtual_tokens: Literal["input", "cache"] | None = None
    sets_weights: bool = False
    settles_late: bool = False
    has_lora_pairs: bool = False
    frozen_bottom: bool = False
    recompute_tested: bool = False
    fp8: bool = False
    cheaper: str | None = None
    starts_at_base: bool = True
    draws: bool = False
    runner: str | None = None
    changes_shape: bool = False
    restarts: bool = False
    no_merge: str | None = None
    no_unmerge: str | None = None
    no_checkpointing: str | None = None
    no_images: str | None = None
    no_mixed_widths: str | None = None
    no_config_switch: Mapping[str, str] = field(default_factory=dict)
    sharded: bool = False

    @property
    def needs_base(self) -> bool:
        """Whether the result of a run works only together with its base."""
        return self.saves != "model"

    @property
    def fitted(self) -> bool:
        """Whether it is fitted without the Trainer."""
        return self.runner is not None

    @property
    def merges(self) -> bool:
        """Whether it has an adapter that can be merged into its base."""
        return self.saves == "adapter" and self.no_merge is None

    @property
    def leaves(self) -> str:
        """Result of a run, in words."""
        if self.saves == "classifier":
            return "a fitted classifier"
        if self.saves == "model":
            return "a whole model"
        return "an adapter" if self.merges else "an adapter that cannot be merged"

    @property
    def cannot(self) -> dict[str, str]:
        """Abilities that it lacks, each with the reason."""
        reasons = {
            "be merged": self.no_merge,
            "be taken out of a merged base": self.no_unmerge,
            "recompute activations": self.no_checkpointing,
            "work on images": self.no_images,
            "adapt weights of several shapes": self.no_mixed_widths,
        }
        return {what: why for what, why in reasons.items() if why is not None}


@dataclass(frozen=True, kw_only=True)
class LossRow(Row):
    """A loss.

    Attributes:
        problem_types: Values of a classifier's ``config.problem_type`` that it supports.
        smooths: Whether it supports ``training.label_smoothing_factor``.
        compares_rows: Whether it compares the rows of a micro-batch, so that its gradient depends
            on how a batch is split.
        plain: Whether it is the default loss of a task; without options it gives all labels equal
            weight.
        own_passes: Whether it runs the model itself: twice on a batch, or on mixed rows.
        mixes_inputs: Whether it mixes the embeddings of rows.
        sharded: Whether tests compare a sharded run with one of a whole model; others are refused.
    """

    problem_types: tuple[str, ...] = (SINGLE_LABEL,)
    smooths: bool = False
    compares_rows: bool = False
    plain: bool = False
    own_passes: bool = False
    mixes_inputs: bool = False
    sharded: bool = True
