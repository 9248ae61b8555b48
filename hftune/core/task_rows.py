# SPDX-License-Identifier: Apache-2.0
"""Registry rows of tasks, problem types, metrics and demo data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hftune.core.registry import MULTI_LABEL, REGRESSION, SINGLE_LABEL, LabelKind, named

#: Kinds of inputs that a task's models read.
Modality = Literal["text", "image", "audio"]


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """One of the Hub's tasks, with the facts that are needed before its class is imported.

    Attributes:
        target: Its class, as ``package.module:Class``.
        summary: One line for people.
        label_kind: Kind of its labels.
        batch_sizes: Default rows of a batch in training and in evaluation, on each device.
        keys: Keys of a recipe whose values the class takes. The last part of a key is the argument.
        modality: Kind of its inputs.
        peft_task_type: PEFT's name of the task; None if PEFT has none.
        encoder_decoder: Whether its models have an encoder and a decoder.
        generates: Whether evaluation generates text by default.
        streamable: Whether its rows can be streamed during training.
        demo_model: A small model to begin with; None if there is none.
        model_hint: Better models than the demo model, or models to use if there is none.
        example_file: Name of a file with new rows, for the end of a run.
        guess_order: Rank among tasks that suit the same rows; the most demanding task comes first.
    """

    target: str
    summary: str
    label_kind: LabelKind
    batch_sizes: tuple[int, int]
    keys: tuple[str, ...] = ()
    modality: Modality = "text"
    peft_task_type: str | None = None
    encoder_decoder: bool = False
    generates: bool = False
    streamable: bool = False
    demo_model: str | None = None
    model_hint: str = ""
    example_file: str = "new.jsonl"
    guess_order: int = 2

    @property
    def writes(self) -> bool:
        """Whether its models answer in tokens of their vocabulary, without a new head.

        Example:
            >>> TaskRow(target="", summary="", label_kind="text", batch_sizes=(8, 8)).writes
            True
        """
        return self.label_kind in ("text", "next_token")

    def resolve(self) -> Any:
        """Import the module and return the class."""
        return named(self.target)


@dataclass(frozen=True, kw_only=True)
class DemoDataRow:
    """A data set to try hftune with.

    Attributes:
        target: The function that returns them, as ``package.module:function``.
        summary: One line for people.
        columns: Task -> role -> column, for roles whose columns have other names. Tasks whose
            columns are all named like their roles have an empty mapping.
    """

    target: str
    summary: str
    columns: Mapping[str, Mapping[str, str]]

    def resolve(self) -> Any:
        """Import the module and return the function."""
        return named(self.target)


@dataclass(frozen=True, kw_only=True)
class ProblemTypeRow:
    """A value of ``config.problem_type``: a kind of labels of whole rows.

    Attributes:
        target: Its class, as ``package.module:Class``.
        several: Whether a row may have several labels.
        numbers: Whether labels are numbers instead of classes.

    Example:
        >>> {name: row.one_class for name, row in PROBLEM_TYPES.items() if not row.several}
        {'single_label_classification': True, 'regression': False}
    """

    target: str
    several: bool = False
    numbers: bool = False

    @property
    def one_class(self) -> bool:
        """Whether each row has exactly one class."""
        return not (self.several or self.numbers)

    def resolve(self) -> Any:
        """Import the module and return the class."""
        return named(self.target)


#: Values of ``config.problem_type``. They are defined here and not in ``tasks`` because rules of
#: the data and of losses need them, too.
PROBLEM_TYPES = {
    SINGLE_LABEL: ProblemTypeRow(target="hftune.tasks.problem_types.single_label:SingleLabel"),
    MULTI_LABEL: ProblemTypeRow(
        target="hftune.tasks.problem_types.multi_label:MultiLabel", several=True
    ),
    REGRESSION: ProblemTypeRow(
        target="hftune.tasks.problem_types.regression:Regression", numbers=True
    ),
}


#: Places that show a metric: the lines during training, the end of a run, the model card, and the
#: curves of shares.
MetricPlace = Literal["progress", "summary", "card", "curves"]


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """A figure of an evaluation.

    Attributes:
        higher_is_better: Whether a higher value is the better one.
        shown: Places that show it.
    """

    higher_is_better: bool = True
    shown: tuple[MetricPlace, ...] = ()
