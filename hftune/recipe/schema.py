# SPDX-License-Identifier: Apache-2.0
"""What a user may write: the sections of a recipe, as plain typed records.

Only hftune's own keys are listed here. The fields under ``method`` and ``training`` belong to PEFT
and Transformers; :mod:`hftune.recipe.fields` reads them from the installed classes.
"""

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from hftune.data import Difficulty, Pacing, SamplingName

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
AttentionName = Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"]
Columns = dict[str, str]

#: The key that a section's short form, a mere text, stands for.
SHORT_FORMS: dict[str, str] = {
    "model": "path",
    "data": "path",
    "method": "name",
    "loss": "name",
    "initialization": "name",
    "distillation": "teacher",
}

#: What a section means that a recipe leaves out.
DEFAULT_NAMES = {"method": "lora", "loss": "cross_entropy"}

#: Keys that are arguments of a task -> the tasks that take them.
TASK_OPTIONS = {
    "model.config.problem_type": ("text-classification",),
    "data.label_names": ("text-classification", "token-classification"),
    "data.label_separator": ("text-classification",),
    "data.block_size": ("text-generation",),
    "data.pack_documents": ("text-generation",),
    "data.system_prompt": ("text-generation",),
    "evaluation.thresholds": ("text-classification",),
    "evaluation.prior": ("text-classification",),
    "data.source_prefix": ("text2text-generation",),
    "data.max_target_length": ("text2text-generation",),
    "evaluation.generation": ("text2text-generation", "text-generation"),
}


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
    attn_implementation: AttentionName = field(
        default="auto",
        metadata={
            "help": "auto: sdpa where the model has it, packed where that is exact, on a GPU "
            "through PyTorch's own flash attention; else eager. flash_attention_2 is the package."
        },
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
    keep_layers: list[int] | None = field(
        default=None,
        metadata={"help": "Numbers of the layers that stay, from 0; the others are taken out."},
    )

    @property
    def attention(self) -> str | None:
        """What Transformers takes as ``attn_implementation``; it chooses where that is None."""
        return None if self.attn_implementation == "auto" else self.attn_implementation


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
    """What makes a row hard, and how fast hard rows come in."""

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
    """Which rows, and what is taken from them."""

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


@dataclass(frozen=True, kw_only=True)
class EvaluationSection:
    """How the validation rows are judged; when they are is said under ``training``."""

    metrics: list[str | dict[str, Any]] | None = field(
        default=None,
        metadata={
            "help": "Metrics of the evaluate library beside hftune's own: names, paths of metric "
            "scripts, or {name: f1, average: micro}. They run code: train with --trust-metrics."
        },
    )
    thresholds: float | dict[str, float] | Literal["best_f1"] | None = field(
        default=None,
        metadata={
            "help": "Probability from which on a label is given: one (0.5 if absent), label to "
            "threshold, or best_f1: those with the highest F1 on the validation rows, which then "
            "flatter the model. Of classes that compete, the highest probability over threshold "
            "wins."
        },
    )
    prior: Literal["uniform", "estimated"] | list[float] | dict[str, float] | None = field(
        default=None,
        metadata={
            "help": "Class shares where the model will be used, which its probabilities are "
            "corrected for: uniform, a list in label order, label to share, or estimated from the "
            "rows that are judged, without their labels."
        },
    )
    generation: dict[str, Any] | bool | None = field(
        default=None,
        metadata={
            "help": "Fields of transformers.GenerationConfig: evaluation lets the model write and "
            "judges the texts. true is greedy, false is none; text2text-generation has it on."
        },
    )
    gap: bool = field(
        default=False,
        metadata={
            "help": "Judge as many training rows beside the validation rows: eval_train_loss, and "
            "eval_gap, by which the validation loss is above it."
        },
    )


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """One of the optimizer's parameter groups."""

    params: str | list[str]
    lr: Annotated[float, Ge(0)] | None = None
    weight_decay: Annotated[float, Ge(0)] | None = None


@dataclass(frozen=True, kw_only=True)
class LearningRateScaling:
    """How the rate follows from the number of rows of an optimizer step."""

    rule: Literal["linear", "sqrt"]
    batch_size: Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class OwnTraining:
    """What stands under ``training`` and has no word in ``TrainingArguments``."""

    layer_decay: Annotated[float, Gt(0), Le(1)] | None = field(
        default=None,
        metadata={"help": "What the rate of each layer is of that of the one above it."},
    )
    param_groups: list[ParamGroup] | None = field(
        default=None,
        metadata={
            "help": "Parameter groups of the optimizer: params is a regular expression for whole "
            "names, or a list of names or their last parts; lr and weight_decay."
        },
    )
    loraplus_lr_ratio: Annotated[float, Ge(1)] | None = field(
        default=None,
        metadata={"help": "LoRA+: the rate of LoRA's B is so many times that of A."},
    )
    loraplus_lr_embedding: Annotated[float, Gt(0)] | None = field(
        default=None, metadata={"help": "LoRA+: the rate of LoRA on embeddings; 1e-6 if absent."}
    )
    learning_rate_scaling: LearningRateScaling | None = field(
        default=None,
        metadata={
            "help": "learning_rate is right for batch_size rows a step; with more or fewer it is "
            "multiplied by their ratio (linear) or its square root (sqrt)."
        },
    )
    max_grad_value: Annotated[float, Gt(0)] | None = field(
        default=None,
        metadata={"help": "Each component of the gradient is cut off at plus and minus this."},
    )
    early_stopping_patience: Annotated[int, Ge(1)] | None = field(
        default=None,
        metadata={
            "help": "End the run after so many evaluations in a row without a gain in "
            "metric_for_best_model."
        },
    )
    early_stopping_threshold: Annotated[float, Ge(0)] | None = field(
        default=None,
        metadata={"help": "A gain is more than this, in units of the metric; 0 if absent."},
    )
    log_grad_norms: Literal["layers", "groups"] | None = field(
        default=None,
        metadata={
            "help": "Log the norm of the gradient, before clipping, of each layer or parameter "
            "group."
        },
    )


#: Keys of ``training`` that TrainingArguments does not know.
OWN_TRAINING = tuple(item.name for item in fields(OwnTraining))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A technique by name with its options, as in ``{name: lora, r: 8}``."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
