# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning with a part of the model frozen, for the whole run or until its turn comes.

Layers are numbered from the bottom, as in Python: 0 is the lowest and -1 the top one. What the
checkpoint lacks always trains, unless it is named among what is frozen: a frozen random layer would
be of no use. The schedules are in :mod:`hftune.methods.freeze.unfreezing`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from hftune.core.console import warn
from hftune.core.errors import HftuneError
from hftune.methods.freeze.unfreezing import Unfreeze, Unfreezing, UnfreezingPhases
from hftune.methods.method import Method
from hftune.models.module_names import (
    Pattern,
    Place,
    all_names,
    check_pattern,
    is_named,
    layer_names,
    places,
)
from hftune.tasks.context import RunContext

Layers = int | str | list[int | str]

RANGE = re.compile(r"(-?\d+)(?:-(-?\d+))?")
NOTHING_FROZEN = (
    "freeze_layers: 0-5, freeze_embeddings: true, freeze_modules: [...], unfreeze_every: epoch or "
    "head_only_steps: 0.3; to train everything: method: full"
)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The options that freeze parameters for good.

    Args:
        freeze_layers: A layer, a range with both ends (``0-8``), or a list of these.
        train_layers: The layers that train; the other layers are frozen.
        freeze_embeddings: Whether they are frozen; if absent, they are when layer 0 is.
        freeze_modules: More that is frozen.
        train_modules: What trains all the same; alone, all else is frozen.

    Example:
        >>> Selection(train_modules=["score"]).names_what_trains
        True
    """

    freeze_layers: Layers | None = field(default=None, metadata={"help": "Frozen layers: a number, "
        "a range with both ends (0-8), or a list of these; -1 is the top one."})  # fmt: skip
    train_layers: Layers | None = field(default=None, metadata={"help": "Layers that train; the "
        "other layers are frozen."})  # fmt: skip
    freeze_embeddings: bool | None = field(default=None, metadata={"help": "Whether embeddings are "
        "frozen; if absent, they are when layer 0 is."})  # fmt: skip
    freeze_modules: Pattern | None = field(default=None, metadata={"help": "More that is frozen: "
        "a regular expression, or a list of names or their last parts."})  # fmt: skip
    train_modules: Pattern | None = field(default=None, metadata={"help": "What trains all the "
        "same; alone, all else is frozen."})  # fmt: skip

    @property
    def counts_layers(self) -> bool:
        """Whether layers are named by number."""
        return self.freeze_layers is not None or self.train_layers is not None

    @property
    def names_what_trains(self) -> bool:
        """Whether all that is not named is frozen."""
        others = (self.freeze_embeddings, self.freeze_modules)
        alone = not self.counts_layers and others == (None, None)
        return alone and self.train_modules is not None


@dataclass(frozen=True, kw_only=True)
class FreezeConfig(Unfreezing, Selection):
    """Options of a recipe: the parts frozen for good, and when the rest begins to train."""


class Freeze(Method):
    """Trains a whole model except for its frozen parts.

    Args:
        options: Fields of :class:`FreezeConfig`.

    Example:
        >>> Freeze(unfreeze_every=5).changes_what_trains
        True
    """

    def __init__(self, **options: Any) -> None:
        self.options = FreezeConfig(**options)
        self.phases: UnfreezingPhases | None = None
        self.turns: dict[str, int] = {}

    @property
    def changes_what_trains(self) -> bool:
        """Whether there is a schedule."""
        return bool(self.options.head_only_steps or self.options.unfreeze_every)

    def apply(self, model: PreTrainedModel, context: RunContext) -> nn.Module:
        """Switch on all parameters that train at some time; see :class:`Method`.

        Raises:
            HftuneError: The options do not fit the model, one another, or the run.
        """
        counted = self.options.counts_layers or self.options.unfreeze_every is not None
        layers = layer_names(model) if counted else []
        where = places(model, layers)
        new = {name for name in where if _is_below(name, context.new_modules)}
        chosen = chosen_parameters(self.options, model, where, len(layers), new)
        if len(chosen) == len(where) and not self.changes_what_trains:
            raise HftuneError("method freeze: nothing is frozen", hint=NOTHING_FROZEN)
        if random := sorted(new - chosen):
            warn(f"the checkpoint lacks {', '.join(random)}: frozen, they keep their random values")
        for name in where:
            model.get_parameter(name).requires_grad_(name in chosen)
        if self.changes_what_trains:
            numbers = sorted({place for name in chosen if isinstance(place := where[name], int)})
            turns: dict[Place, int] = {"head": 0, "other": 1, "embeddings": max(len(numbers), 1)}
            turns |= {number: len(numbers) - at for at, number in enumerate(numbers)}
            self.turns = {name: 0 if name in new else turns[where[name]] for name in chosen}
            self.phases = UnfreezingPhases.of(self.options, set(self.turns.values()), context)
        return model

    def rate_factor(self) -> Callable[[int], float] | None:
        """Return the rate of a head that trains alone, next to that of the whole model."""
        if self.phases is None or self.options.head_only_rate == 1:
            return None
        start, rate = self.phases.start, self.options.head_only_rate
        return lambda step: rate if step < start else 1.0

    def callbacks(self, model: nn.Module) -> list[TrainerCallback]:
        """Return the callback that unfreezes."""
        return [] if self.phases is None else [Unfreeze(model, self.phases, self.turns)]


def chosen_parameters(
    given: Selection,
    model: PreTrainedModel,
    where: dict[str, Place],
    num_layers: int,
    new: set[str],
) -> set[str]:
    """Return the names of the parameters that are not frozen for good.

    Args:
        given: What the recipe says.
        model: Whose parameters they are.
        where: The place of each.
        num_layers: How many layers it has; 0 where they do not count.
        new: What the checkpoint lacks.

    Raises:
        HftuneError: Nothing would train, or an option does not fit the model or has no effect.
    """
    stays = _frozen_places(given, where, num_layers, type(model).__name__)
    chosen = new | {name for name, place in where.items() if place not in stays}
    for option, pattern in (
        ("freeze_modules", given.freeze_modules),
        ("train_modules", given.train_modules),
    ):
        if pattern is None:
            continue
        check_pattern(f"method.{option}", pattern, model)
        meant = {
            names[0] for names in all_names(model) if any(is_named(name, pattern) for name in names)
        }
        before = chosen
        chosen = chosen - meant if option == "freeze_modules" else chosen | meant
        if chosen == before:
            state = "frozen" if option == "freeze_modules" else "trained"
            raise HftuneError(f"method.{option}: without effect: all of it is {state} anyway")
    if not chosen:
        raise HftuneError("method freeze: everything is frozen, and nothing is left to train")
    return chosen


def _frozen_places(
    given: Selection, where: dict[str, Place], num_layers: int, model: str
) -> set[Place]:
    """Return the layers and other places that stay frozen."""
    frozen = set(range(num_layers)) - trained_layers(given, num_layers, model)
    tables = 0 in frozen if given.freeze_embeddings is None else given.freeze_embeddings
    stays: set[Place] = set(frozen)
    if tables:
        stays.add("embeddings")
    if given.names_what_trains:
        stays = set(where.values())
    return stays


def trained_layers(given: Selection, count: int, model: str) -> set[int]:
    """Return the numbers of the layers that train.

    Args:
        given: The options.
        count: How many layers there are.
        model: What errors call the model.

    Raises:
        HftuneError: A number is no layer, or both options are given.

    Example:
        >>> trained_layers(Selection(freeze_layers="0-1"), 4, "BertModel")
        {2, 3}
    """
    if given.freeze_layers is not None and given.train_layers is not None:
        raise HftuneError("method.train_layers: say it or freeze_layers, not both")
    if given.train_layers is not None:
        return _numbers("train_layers", given.train_layers, count, model)
    if given.freeze_layers is None:
        return set(range(count))
    return set(range(count)) - _numbers("freeze_layers", given.freeze_layers, count, model)


def _numbers(option: str, given: Layers, count: int, model: str) -> set[int]:
    numbers: set[int] = set()
    for item in given if isinstance(given, list) else [given]:
        match = RANGE.fullmatch(str(item))
        if match is None:
            raise HftuneError(
                f"method.{option}: {item!r} is neither a layer nor a range of them",
                hint="a range names both ends: 0-8, or -4--1 for the four at the top",
            )
        ends = [int(end) for end in match.groups() if end is not None]
        for end in ends:
            if not -count <= end < count:
                raise HftuneError(
                    f"method.{option}: there is no layer {end}: {model} has {count} layers, "
                    f"0 to {count - 1}"
                )
        first, last = ends[0] % count, ends[-1] % count
        if first > last:
            raise HftuneError(f"method.{option}: {item} ends below its beginning")
        numbers |= set(range(first, last + 1))
    return numbers


def _is_below(name: str, modules: tuple[str, ...]) -> bool:
    return name.startswith(tuple(f"{module}." for module in modules))
