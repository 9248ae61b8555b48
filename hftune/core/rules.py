# SPDX-License-Identifier: Apache-2.0
"""Rules that refuse combinations of settings, and the view of a recipe that they check."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, TypeVar

from hftune.core.optimization_rows import OptimizerRow, ScheduleRow
from hftune.core.registry import Choice, LossRow, MethodRow
from hftune.core.task_rows import TaskRow

Section = TypeVar("Section")


@dataclass(frozen=True, kw_only=True)
class RecipeView:
    """Sections of a recipe, and the registry rows of the techniques that it names.

    ``view[DataSection]`` is a section of a recipe, by its class. A rule asks the rows for facts
    about techniques and compares no names.

    Attributes:
        task: Name of the task.
        method: Name and options of the method.
        loss: Name and options of the loss; None if the task chooses.
        training: Fields of ``training`` as the recipe gives them, without defaults.
        task_row: Facts about the task.
        method_row: Facts about the method.
        loss_row: Facts about the loss; None if the task chooses.
        optimizer_row: Facts about ``training.optim`` or the default optimizer.
        schedule_row: Facts about ``training.lr_scheduler_type`` or the default schedule.
        sections: Section class -> section, for sections that the recipe has.
    """

    task: str
    method: Choice
    loss: Choice | None
    training: Mapping[str, Any]
    task_row: TaskRow
    method_row: MethodRow
    loss_row: LossRow | None
    optimizer_row: OptimizerRow
    schedule_row: ScheduleRow
    sections: Mapping[type, object] = field(default_factory=dict)

    def __getitem__(self, kind: type[Section]) -> Section:
        section = self.sections[kind]
        assert isinstance(section, kind)
        return section

    def get(self, kind: type[Section]) -> Section | None:
        """Return an optional section; None if the recipe leaves it out."""
        return self[kind] if kind in self.sections else None


@dataclass(frozen=True)
class Rule:
    """A combination of settings that is refused.

    Attributes:
        key: Key of the recipe to name in the error.
        says: Message for the user and sentence of the docs.
        broken: Function that tells whether a recipe breaks the rule.
    """

    key: str
    says: str
    broken: Callable[[RecipeView], bool]


def training(view: RecipeView, key: str, default: Any = None) -> Any:
    """Return a field of ``training`` from the recipe, or a default."""
    return view.training.get(key, default)


def option(view: RecipeView, name: str) -> Any:
    """Return an option of the method from the recipe, or None."""
    return view.method.options.get(name)


def installed(*packages: str) -> bool:
    """Tell whether all packages are installed, without importing them.

    Example:
        >>> installed("json"), installed("json", "no_such_package")
        (True, False)
    """
    return all(find_spec(package) is not None for package in packages)
