# SPDX-License-Identifier: Apache-2.0
"""The section ``distillation`` of a recipe; imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Gt, Le

#: Default temperature, which divides the logits of teacher and student.
TEMPERATURE = 2.0
#: In place of a teacher's name: the average of the student's own weights.
OWN_AVERAGE = "weight_averaging"
LayerMap = dict[int, Annotated[int, Ge(0)]]


@dataclass(frozen=True, kw_only=True)
class DistillationSection:
    """The teachers, and the parts of their answers that the student learns.

    Example:
        >>> section = DistillationSection(teacher="runs/large", alpha=1.0)
        >>> section.teachers, section.counts_labels
        (['runs/large'], False)
    """

    teacher: str | list[str] = field(
        metadata={
            "help": "A run of hftune, an adapter, a model's folder or Hub id; of a list the mean "
            "of their probabilities; or weight_averaging, the average of the student's weights."
        }
    )
    temperature: Annotated[float, Gt(0)] | None = field(
        default=None,
        metadata={"help": "Divides the logits of teacher and student; 2 if absent."},
    )
    alpha: Annotated[float, Ge(0), Le(1)] = field(
        default=0.5,
        metadata={"help": "Weight of the teacher's answers; the labels have 1 - alpha."},
    )
    warmup_steps: Annotated[float, Ge(0)] = field(
        default=0,
        metadata={
            "help": "alpha grows from 0 over so many optimizer steps; below 1 a share of the run."
        },
    )
    top_k: Annotated[int, Ge(1)] | None = field(
        default=None,
        metadata={
            "help": "Language models: the teacher's likeliest tokens, and all others as one; every "
            "token if absent."
        },
    )
    cache: bool | None = field(
        default=None,
        metadata={
            "help": "Keep the teacher's answers, so that it runs once for a content; if absent, "
            "wherever it can be done."
        },
    )
    hidden_states: LayerMap = field(
        default_factory=dict,
        metadata={
            "help": "Student's hidden state: teacher's; 0 are the embeddings, n the output of the "
            "n-th layer. They are drawn together by their mean squared difference, through a "
            "learned linear layer where their widths differ."
        },
    )
    hidden_states_weight: Annotated[float, Gt(0)] | None = field(
        default=None, metadata={"help": "Weight of hidden_states; 1 if absent."}
    )
    attentions: LayerMap = field(
        default_factory=dict,
        metadata={
            "help": "Student's layer: teacher's, from 0, whose attention is drawn together by its "
            "divergence; needs model.attn_implementation: eager."
        },
    )
    attentions_weight: Annotated[float, Gt(0)] | None = field(
        default=None, metadata={"help": "Weight of attentions; 1 if absent."}
    )

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers; none if the student's average is the teacher."""
        if self.is_own_average:
            return []
        return [self.teacher] if isinstance(self.teacher, str) else list(self.teacher)

    @property
    def is_own_average(self) -> bool:
        """Whether the average of the student's weights is the teacher."""
        return self.teacher == OWN_AVERAGE

    @property
    def counts_labels(self) -> bool:
        """Whether the labels count, at least while ``alpha`` grows."""
        return self.alpha < 1 or self.warmup_steps > 0

    @property
    def looks_inside(self) -> bool:
        """Whether the student also learns hidden states or attention."""
        return bool(self.hidden_states or self.attentions)
