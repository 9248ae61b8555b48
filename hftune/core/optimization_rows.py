# SPDX-License-Identifier: Apache-2.0
"""Registry rows of optimizers, schedules, initialization and regularization."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hftune.core.registry import Schema


@dataclass(frozen=True, kw_only=True)
class OptimizerRow:
    """A value of ``training.optim``.

    Attributes:
        summary: One line for people.
        target: The class, as ``package.module:Class``; None if Transformers makes it.
        package: A further package to install, by its name for pip.
        args: Options that ``training.optim_args`` may give, as JSON Schema.
        handed: Those of ``args`` that hftune must pass to the class because Transformers drops
            them or passes text; all of them if there is a target.
        required_args: Options that ``training.optim_args`` must give, each with the reason.
        settings: Arguments of the class for which hftune has another default.
        reads: Fields of ``TrainingArguments`` that it uses, in addition to the learning rate.
        first_part: Function that returns the names of its parameters, as ``package.module:name``;
            AdamW trains the others. None if it trains all of them.
        rest_reads: Fields of ``TrainingArguments`` that AdamW uses for the other parameters.
        decays: Whether it uses ``training.weight_decay``.
        groups: Whether hftune may assign the parameters to groups.
        takes_model: Whether Transformers needs the model to create it.
        in_backward: Whether it steps inside the backward pass, so that no gradient is kept.
        closure: Whether a step computes the loss of its batch several times.
        full_batch: Why its gradients must be those of all rows at once; None if it
            takes any batch.
        own_schedule: Whether it averages its steps instead of using a schedule, and has a warmup of
            its own.
        average_key: Key of its state that holds an average of each weight.
        plain_states: Whether its state consists only of averages in the shape of the parameter.
        sharded: Whether it is tested on sharded parameters; others are refused.
        stateless_without: The option without which it keeps no state.
        state_bytes: Bytes of state for each parameter that trains.
        state_options: Options that add a number of 4 bytes to the state of each parameter.
        history_option: The option that ``state_bytes`` is proportional to, and its default.
        learning_rate: The default, if that of the method would be of a different magnitude.
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
        """Whether the optimizer averages the weights itself."""
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
class ScheduleRow:
    """A value of ``training.lr_scheduler_type``.

    Attributes:
        summary: One line for people.
        target: Function that returns the factor, or the class if it measures, as
            ``package.module:name``; None if Transformers makes the schedule.
        kwargs: Options that ``training.lr_scheduler_kwargs`` may give, as JSON Schema.
        required: Options that it must give.
        example: Options for the picture of all schedules.
        check: Function that checks the options against the run, as ``package.module:name``.
        flat: Whether the rate is constant, without warmup.
        warmup: Default of ``training.warmup_steps``; None for the default of all runs.
        ends_low: Whether it ends with rates close to 0.
        scalable: Whether it is a factor for each step, without restarts.
        measures: Whether it follows the metric of the evaluations.
        default_patience: Default of ``patience``, if the rate falls only after so many evaluations.

    Example:
        >>> ScheduleRow(summary="A triangle.", target="m:triangle").own
        True
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
        """Whether the schedule is hftune's own, without a name in Transformers."""
        return self.target is not None and not self.measures


@dataclass(frozen=True, kw_only=True)
class SchemeRow:
    """A value of ``initialization.name``.

    Attributes:
        summary: One line for people.
        target: Function that initializes a tensor in place, as ``package.module:name``; None if it
            needs more than the tensor.
        options: Arguments of the function that a recipe may give.
        required: Those that a recipe must give.
        settings: Arguments for which hftune has another default than the function.
        draws: Shapes that it supports: ``matrices``, ``vectors`` or ``any``.
        equal_weights: Whether all weights become equal, so that a recipe gets a warning.
        scales_on_batch: Whether its layers are then scaled on a batch of training rows.

    Example:
        >>> SchemeRow(summary="Uniform.", options=("a", "b")).bounds
        True
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
class RegularizationRow:
    """A key of ``regularization``.

    Attributes:
        summary: One line for people.
        config_fields: Fields of Transformers' configs that it sets; a model has one or a few.
        penalizes: The weights whose penalty it adds to the loss: ``matrices`` are those of two
            dimensions or more. None if it adds none.
        changes_gradient: Whether it changes the gradient that the optimizer sees.
        moves_weights: Whether it moves weights while a gradient is computed.
        moves_frozen: Whether the outputs of frozen layers, too, change from pass to pass.
        state_copies: Copies that it keeps of each weight that trains, during the whole run.
        sharded: Whether it is tested on a sharded model, untested, or refused for a reason.

    Example:
        >>> RegularizationRow(summary="Adds noise.", moves_weights=True).needs_gradient
        True
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
        """Whether it needs the whole gradient of a step at once."""
        return self.changes_gradient or self.moves_weights


@dataclass(frozen=True, kw_only=True)
class AverageRow:
    """A value of ``regularization.weight_averaging.name``.

    Attributes:
        decay: Default of ``decay``; None if all steps have equal weight.
        start: Default of ``start``, as a share of the run.
    """

    decay: float | None
    start: float
