# SPDX-License-Identifier: Apache-2.0
"""Keys of the section ``data:``; they choose the rows and the order of training."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from hftune.data.sampling import Difficulty, Pacing, SamplingName

Columns = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class SourceItem:
    """One source of several in ``data.path``."""

    path: str | list[str]
    name: str | None = None
    revision: str | None = None
    split: str | None = None
    columns: Columns = field(default_factory=dict)
    weight: Annotated[float, Gt(0)] | None = None


@dataclass(frozen=True, kw_only=True)
class SamplingChoice:
    """How the rows of an epoch are drawn, where it does not have each once."""

    name: SamplingName
    column: str | None = None


@dataclass(frozen=True, kw_only=True)
class CurriculumChoice:
    """The measure of a row's difficulty, and the pace at which hard rows come in."""

    name: Difficulty
    column: str | None = None
    model: str | None = None
    pacing: Pacing = "linear"
    start: Annotated[float, Gt(0), Le(1)] | None = None
    duration: Annotated[float, Gt(0), Le(1)] | None = None
    stages: Annotated[int, Ge(2)] | None = None
    advance: Literal["time", "plateau"] = "time"
    patience: Annotated[int, Ge(1)] | None = None
    hardest_first: bool = False


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """The choice of rows and columns."""

    path: str | list[str | SourceItem] | None = field(
        default=None,
        metadata={
            "help": "csv, tsv, json, jsonl, txt, parquet or CoNLL file, folder, glob, list of "
            "files, saved datasets folder, Hub id, or demo:docstrings; or a list of sources, "
            "{path, columns, weight, ...}. Only Python may leave it out, and hand over a Dataset."
        },
    )
    name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    revision: str | None = field(default=None, metadata={"help": "Revision of a Hub data set."})
    split: str | None = field(
        default=None,
        metadata={
            "help": "The split to train on, or slices of splits, such as train[:10%]; train if "
            "absent. What has no splits can be sliced as train."
        },
    )
    sample_by: Literal["line", "paragraph", "document"] | None = field(
        default=None, metadata={"help": "What a row of a txt file is; line if absent."}
    )
    unlabelled: str | list[str] | None = field(
        default=None,
        metadata={"help": "Rows that a teacher alone teaches: the kinds of path, without labels."},
    )
    validation: str | list[str] | None = field(
        default=None,
        metadata={
            "help": "Rows to evaluate on: the kinds of path, or a split of path or slices of its "
            "splits, such as train[90%:]; split off from path if absent."
        },
    )
    validation_size: float | int = field(
        default=0.1,
        metadata={
            "help": "Split off when there is no validation part: a share below 1 or a number of "
            "rows; 0 for none."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read and tokenize rows as they are needed; for data that do not fit."},
    )
    shuffle_buffer_size: int | None = field(
        default=None,
        metadata={"help": "A stream is shuffled over this many rows; 10000 if absent."},
    )
    stopping_strategy: Literal["first_exhausted", "all_exhausted"] = field(
        default="first_exhausted",
        metadata={
            "help": "Sources with weights are mixed until the first runs out, or begin again until "
            "all have."
        },
    )
    columns: Columns = field(
        default_factory=dict, metadata={"help": "Role to column name, such as {text: message}."}
    )
    label_names: list[str] | None = field(
        default=None,
        metadata={"help": "Class names in the order of their ids; from the rows if absent."},
    )
    label_separator: str | None = field(
        default=None,
        metadata={"help": "What separates several labels in one cell, such as |."},
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens a row may have; the model's positions if absent."}
    )
    block_size: int | None = field(
        default=None, metadata={"help": "Tokens of a block of plain text; max_length if absent."}
    )
    pack_documents: bool | None = field(
        default=None,
        metadata={
            "help": "Whether blocks of plain text are cut from all documents put end to end, or "
            "from each on its own."
        },
    )
    padding_free: bool | None = field(
        default=None,
        metadata={"help": "Whether the layers work on tokens alone; where that is exact, if "
                          "absent."},
    )  # fmt: skip
    token_budget: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that a batch of one process may hold, in place of a number of rows."
        },
    )
    cache_trunk: bool | None = field(
        default=None,
        metadata={"help": "Whether frozen layers below the first one that trains run once, their "
                          "hidden states kept; where that is exact and pays, if absent. With true "
                          "they draw no dropout."},
    )  # fmt: skip
    system_prompt: str | None = field(
        default=None, metadata={"help": "System turn of conversations that have none."}
    )
    source_prefix: str | None = field(
        default=None, metadata={"help": "Put before every text, such as 'summarize: '."}
    )
    max_target_length: int | None = field(
        default=None, metadata={"help": "Tokens a target may have; max_length if absent."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many rows, drawn by seed."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on this many rows, drawn by seed."}
    )
    sampling: SamplingChoice | SamplingName | None = field(
        default=None,
        metadata={
            "help": "The training rows of an epoch, each once if absent: balanced draws all "
            "classes alike, with replacement; oversample and undersample give each as many rows as "
            "the largest or smallest has; {name: weighted, column: ...} draws by a column of "
            "weights."
        },
    )
    curriculum: CurriculumChoice | Difficulty | None = field(
        default=None,
        metadata={
            "help": "Easy training rows first, by length, rarity, {name: column, column: ...} or "
            "{name: loss, model: RUN}; with pacing (linear, root, exponential, staged), start, "
            "duration (shares of the rows and of the run), stages, advance (plateau: a stage ends "
            "where the metric stands still), patience, hardest_first."
        },
    )

    @property
    def has_validation(self) -> bool:
        """Whether there will be validation rows."""
        return self.validation is not None or self.validation_size > 0
