# SPDX-License-Identifier: Apache-2.0
"""What a user may write: the sections of a recipe, as plain typed records.

Only hftune's own keys are listed here. The fields under ``method`` and ``training`` belong to PEFT
and Transformers; :mod:`hftune.recipe.fields` reads them from the installed classes.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Gt

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Columns = dict[str, str]

#: The key that a section's short form, a mere text, stands for.
SHORT_FORMS = {"model": "path", "data": "path", "method": "name", "loss": "name"}

#: What a section means that a recipe leaves out.
DEFAULT_NAMES = {"method": "lora", "loss": "cross_entropy"}


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """Which pretrained model, and how it is loaded."""

    path: str = field(metadata={"help": "Hub id, local folder, demo:minilm or demo:smollm2."})
    revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the Hub repository."}
    )
    dtype: Dtype = field(
        default="auto",
        metadata={
            "help": "Type of the weights. auto: float32 on a CPU and for full fine-tuning, else "
            "the checkpoint's."
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flash_attention_2, flex_attention."}
    )
    config: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Fields of the model's config to override."}
    )
    quantization: dict[str, Any] | None = field(
        default=None, metadata={"help": "Fields of transformers.BitsAndBytesConfig."}
    )
    classifier_pooling: Literal["cls", "mean"] = field(
        default="cls",
        metadata={
            "help": "What an encoder's classification head reads: the first position, or the mean "
            "over all tokens put in its place."
        },
    )


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
class DataSection:
    """Which rows, and what is taken from them."""

    path: str | list[str | SourceItem] | None = field(
        default=None,
        metadata={
            "help": "csv, jsonl or parquet file, glob, list of files, saved datasets folder, Hub "
            "id, or demo:docstrings; or a list of sources, {path, columns, weight, ...}. Only "
            "Python may leave it out, and hand over a Dataset."
        },
    )
    name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    revision: str | None = field(default=None, metadata={"help": "Revision of a Hub data set."})
    split: str | None = field(
        default=None, metadata={"help": "Part of a Hub data set or saved folder; train if absent."}
    )
    validation: str | list[str] | None = field(
        default=None, metadata={"help": "Rows to evaluate on; split off from path if absent."}
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
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens a row may have; the model's positions if absent."}
    )
    block_size: int | None = field(
        default=None, metadata={"help": "Tokens of a block of plain text; max_length if absent."}
    )
    pack_documents: bool = field(
        default=True,
        metadata={
            "help": "Whether blocks of plain text are cut from all documents put end to end, or "
            "from each on its own."
        },
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System turn of conversations that have none."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many rows, drawn by seed."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on this many rows, drawn by seed."}
    )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A technique by name with its options, as in ``{name: lora, r: 8}``."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
