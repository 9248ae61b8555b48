# SPDX-License-Identifier: Apache-2.0
"""A row of a family's literal table: data that imports nothing until it is resolved."""

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

#: Ranges of numbers, for options whose type a class gives.
ABOVE_ZERO: Schema = {"exclusiveMinimum": 0}
AT_LEAST_ZERO: Schema = {"minimum": 0}
AT_LEAST_ONE: Schema = {"minimum": 1}
FRACTION: Schema = {"minimum": 0, "exclusiveMaximum": 1}
WITHIN: Schema = {"exclusiveMinimum": 0, "exclusiveMaximum": 1}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A technique by name with its options, as in ``{name: lora, r: 8}``."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


#: Kinds of labels: a class, several or a number for each row, a class for each token, another text,
#: or the next token of the row itself.
LabelKind = Literal["class", "token", "text", "next_token"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One technique of a family.

    Attributes:
        target: Where it lives, as ``package.module:object``.
        summary: One line for people.
        options: The dataclass whose fields are its options, where that is not the target.
        labels: Kinds of labels that it suits; all of them when empty.
        default: Whether it is used if a recipe names none.
        ranges: Option -> JSON Schema keywords that its type does not say, such as a minimum.
        rules: Rules about its own options.
    """

    target: str
    summary: str
    options: str | None = None
    labels: tuple[LabelKind, ...] = ()
    default: bool = False
    ranges: Mapping[str, Schema] = field(default_factory=dict)
    rules: "tuple[Rule, ...]" = ()

    def resolve(self) -> Any:
        """Import the module and return the object."""
        return named(self.target)

    def resolve_options(self) -> Any:
        """Import the module and return the dataclass of the options."""
        return named(self.options or self.target)

    def suits(self, task: "TaskRow") -> bool:
        """Tell whether the technique goes with a task's labels."""
        return not self.labels or task.label_kind in self.labels


def named(place: str) -> Any:
    """Import what ``package.module:object`` names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def default_name(table: Mapping[str, Row]) -> str:
    """Return the name of the technique that is used if a recipe names none."""
    return next(name for name, row in table.items() if row.default)


@dataclass(frozen=True, kw_only=True)
class MethodRow(Row):
    """One method. What is said here is held by tests/methods/test_conformance.py.

    A field that starts with ``no_`` is None, or says why not, to follow the method's name.

    Attributes:
        saves: What a run leaves: a whole ``model``, or an ``adapter`` or fitted ``classifier``
            beside a base that keeps every bit.
        trains: What it trains: pretrained ``weights``, pretrained ``biases``, the ``head``, an
            ``adapter``, or nothing of the model but a classifier on its ``features``.
        learning_rate: The default learning rate.
        learning_rate_writing: The default learning rate of language models, if it is another.
        defaults: Options that the class of the options leaves open or chooses less well.
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
        cheaper: A method that takes less memory, to propose if a run may not fit.
        starts_at_base: Whether the model's output is that of the base before the first step.
        rewrites_base: Whether it also changes weights that get no gradient, by merging into them.
        draws: Whether a forward pass in training draws noise of its own, on each process another.
        changes_shape: Whether its weights have other shapes at the end than at the start.
        restarts: Whether it prunes the optimizer's state and warms up again within a run.
        no_merge: Why the adapter cannot be put into its base.
        no_unmerge: Why it cannot be taken out again.
        no_checkpointing: Why activations cannot be computed again in the backward pass.
        no_images: Why it cannot work on a model of images.
        no_mixed_widths: Why all weights that it adapts must have one shape.
        no_config_switch: Switch of a model's config -> why it cannot be on.
        sharded: Whether tests compare a sharded run with one of a whole model; others are refused.
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
    rewrites_base: bool = False
    draws: bool = False
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
        """Tell whether what a run leaves works only beside its base."""
        return self.saves != "model"

    @property
    def fitted(self) -> bool:
        """Tell whether it is fitted on features; no Trainer runs."""
        return self.saves == "classifier"

    @property
    def merges(self) -> bool:
        """Tell whether there is an adapter that can be put into its base."""
        return self.saves == "adapter" and self.no_merge is None

    @property
    def leaves(self) -> str:
        """Say what a run leaves."""
        if self.fitted:
            return "a fitted classifier"
        if self.saves == "model":
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
        target: The class, as ``package.module:Class``; None if Transformers makes it.
        package: The package to install beside hftune, as pip calls it.
        args: Options that ``training.optim_args`` may give, as JSON Schema.
        handed: Those of ``args`` that Transformers leaves out or hands over as text, so that hftune
            hands them to the class; all of them where there is a target.
        required_args: Options that ``training.optim_args`` must give, each with the reason.
        settings: Arguments of the class for which hftune has another default.
        reads: Fields of ``TrainingArguments`` that it takes, beside the learning rate.
        first_part: The function that names the parameters it steps, as ``package.module:name``;
            AdamW steps the rest. None if it steps all of them.
        rest_reads: Fields of ``TrainingArguments`` that AdamW takes for the rest.
        decays: Whether it takes ``training.weight_decay``.
        groups: Whether hftune may say which parameters are in which group.
        takes_model: Whether Transformers needs the model to make it.
        in_backward: Whether it steps inside the backward pass, so that no gradient is kept.
        closure: Whether a step computes the loss of its batch several times.
        full_batch: Why its gradients must be those of all rows at once; None if any batch will do.
        own_schedule: Whether it averages its steps in place of a schedule, and warms up by itself.
        average_key: Key of its state that holds an average of each weight.
        plain_states: Whether its state is averages in the shape of the parameter, and nothing else.
        sharded: Whether it is tested on sharded parameters; others are refused.
        stateless_without: The option without which it keeps no state.
        state_bytes: Bytes of state for each parameter that trains.
        state_options: Options that add a number of 4 bytes to the state of each parameter.
        history_option: The option that ``state_bytes`` is proportional to, and its default.
        learning_rate: The default, where that of the method would be of another order.
        training_defaults: Defaults of other fields of ``training``.
    """

    summary: str
    target: str | None = None
    package: str | None = None
    args: Mapping[str, Schema] = field(default_factory=dict)
    handed: tuple[str, ...] = ()
    required_args: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    first_part: str | None = None
    rest_reads: tuple[str, ...] = ()
    decays: bool = True
    groups: bool = True
    takes_model: bool = False
    in_backward: bool = False
    closure: bool = False
    full_batch: str | None = None
    own_schedule: bool = False
    average_key: str | None = None
    plain_states: bool = False
    sharded: bool = False
    stateless_without: str | None = None
    state_bytes: float = 8
    state_options: tuple[str, ...] = ()
    history_option: tuple[str, int] | None = None
    learning_rate: float | None = None
    training_defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def averages(self) -> bool:
        """Whether it averages the weights itself."""
        return self.own_schedule or self.average_key is not None

    def state_bytes_of(self, args: Mapping[str, Any]) -> float:
        """Return the bytes of state for each parameter that trains.

        Args:
            args: Options as ``training.optim_args`` gives them.

        Example:
            >>> row = OptimizerRow(summary="SGD.", state_bytes=0, state_options=("momentum",))
            >>> row.state_bytes_of({}), row.state_bytes_of({"momentum": 0.9})
            (0, 4)
        """
        own = self.state_bytes
        if self.history_option is not None:
            option, usual = self.history_option
            own = own * args.get(option, usual) / usual
        return own + 4 * sum(bool(args.get(option)) for option in self.state_options)


@dataclass(frozen=True, kw_only=True)
class LossRow(Row):
    """A loss.

    Attributes:
        problem_types: Values of a classifier's ``config.problem_type`` that it goes with.
        smooths: Whether ``training.label_smoothing_factor`` goes with it.
        compares_rows: Whether it compares the rows of a micro-batch, so that its gradient depends
            on how a batch is split.
        plain: Whether it is the loss that a task takes if the recipe names none; without options
            it weighs all labels alike.
        own_passes: Whether it runs a batch in a way of its own: twice, or with rows mixed.
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


@dataclass(frozen=True, kw_only=True)
class SchemeRow:
    """A value of ``initialization.name``.

    Attributes:
        summary: One line for people.
        target: The function that draws a tensor in place, as ``package.module:name``; None if it
            needs more than the tensor.
        options: Arguments of the function that a recipe may give.
        required: Those that a recipe must give.
        settings: Arguments for which hftune has another default than the function.
        draws: ``matrices`` if it needs the two sides of a weight, ``vectors`` if it is made for one
            bias, else any shape.
        equal_weights: Whether a recipe is warned that all weights it draws are equal.
        scales_on_batch: Whether its layers are then scaled on a batch of training rows.
    """

    summary: str
    target: str | None = None
    options: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    draws: Literal["matrices", "vectors", "any"] = "any"
    equal_weights: bool = False
    scales_on_batch: bool = False

    @property
    def bounds(self) -> bool:
        """Whether ``a`` and ``b`` bound the weights."""
        return {"a", "b"} <= set(self.options)


@dataclass(frozen=True, kw_only=True)
class ScheduleRow:
    """A value of ``training.lr_scheduler_type``.

    Attributes:
        summary: One line for people.
        target: The function of the factor, or the class if it measures, as ``package.module:name``;
            None if Transformers makes the schedule.
        kwargs: Options that ``training.lr_scheduler_kwargs`` may give, as JSON Schema.
        required: Options that it must give.
        example: Options for the picture of all schedules.
        check: The function that compares options and run, as ``package.module:name``.
        flat: Whether the rate is the same throughout, without warmup.
        warmup: Default of ``training.warmup_steps``; None for the default of all runs.
        ends_low: Whether it is meant to end with rates that hardly move a weight.
        scalable: Whether it is a factor by step, without restarts of its own.
        measures: Whether it follows the metric of the evaluations.
        default_patience: Default of ``patience``, if the rate falls only after so many evaluations.
    """

    summary: str
    target: str | None = None
    kwargs: Mapping[str, Schema] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    example: Mapping[str, Any] = field(default_factory=dict)
    check: str | None = None
    flat: bool = False
    warmup: float | None = None
    ends_low: bool = False
    scalable: bool = True
    measures: bool = False
    default_patience: int | None = None

    @property
    def own(self) -> bool:
        """Whether Transformers has no name for it."""
        return self.target is not None and not self.measures


@dataclass(frozen=True, kw_only=True)
class RegularizationRow:
    """A key of ``regularization``.

    Attributes:
        summary: One line for people.
        config_fields: Fields of Transformers' configs that it sets; a model has one or a few.
        penalizes: The weights whose penalty it adds to the loss: ``matrices`` are those of two
            dimensions or more. None if it adds none.
        changes_gradient: Whether it changes the gradient that the optimizer sees.
        moves_weights: Whether it moves weights while a gradient is computed.
        moves_frozen: Whether frozen layers compute something else in each pass, too.
        state_copies: Copies that it keeps of each weight that trains.
        sharded: Whether it is tested on a sharded model, untested, or refused for a reason.
    """

    summary: str
    config_fields: tuple[str, ...] = ()
    penalizes: Literal["matrices", "pretrained"] | None = None
    changes_gradient: bool = False
    moves_weights: bool = False
    moves_frozen: bool = False
    state_copies: int = 0
    sharded: Literal["tested", "untested", "refused"] = "untested"

    @property
    def needs_gradient(self) -> bool:
        """Whether it needs the gradient of a whole step at once."""
        return self.changes_gradient or self.moves_weights


@dataclass(frozen=True, kw_only=True)
class AverageRow:
    """A value of ``regularization.weight_averaging.name``.

    Attributes:
        decay: Default of ``decay``; None if all steps count the same.
        start: Default of ``start``, a share of the run.
    """

    decay: float | None
    start: float


@dataclass(frozen=True, kw_only=True)
class SamplingRow:
    """A value of ``data.sampling``, or of ``data.curriculum``, which orders rows by difficulty.

    Attributes:
        summary: One line for people.
        target: The function that makes a row sampler from the classes or weights of all rows, or
            returns how hard rows are from their tokens, as ``package.module:name``; None if the
            difficulties are given.
        by_class: Whether it needs the class of each row.
        reads_column: Whether it reads numbers from a column.
        needs_reference: Whether it needs the losses of a reference model.
    """

    summary: str
    target: str | None = None
    by_class: bool = False
    reads_column: bool = False
    needs_reference: bool = False


@dataclass(frozen=True, kw_only=True)
class PacingRow:
    """A value of ``data.curriculum.pacing``.

    Attributes:
        summary: One line for people.
        target: The function of the share of known rows, as ``package.module:name``.
        in_stages: Whether the share grows in stages.
    """

    summary: str
    target: str
    in_stages: bool = False
