# SPDX-License-Identifier: Apache-2.0
"""Tasks by name: columns, model class, preprocessing, collator, metrics and predictions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hftune.core.task_rows import TaskRow

if TYPE_CHECKING:
    from hftune.tasks.task import Task

TASKS = {
    "text-classification": TaskRow(
        target="hftune.tasks.text_classification:TextClassification",
        summary="One label for a text or a pair of texts.",
        label_kind="class",
        batch_sizes=(16, 64),
        keys=(
            "model.config.problem_type",
            "data.label_names",
            "data.label_separator",
            "evaluation.thresholds",
            "evaluation.prior",
        ),
        peft_task_type="SEQ_CLS",
        streamable=True,
        demo_model="demo:minilm",
        model_hint="small, English; better: an encoder on the Hub, such as "
        "answerdotai/ModernBERT-base",
        example_file="new.csv",
        guess_order=1,
    ),
    "token-classification": TaskRow(
        target="hftune.tasks.token_classification:TokenClassification",
        summary="A tag for each word: entities, slots, parts of speech.",
        label_kind="token",
        batch_sizes=(16, 64),
        keys=("data.label_names",),
        peft_task_type="TOKEN_CLS",
        demo_model="demo:minilm",
        model_hint="small, English; better: an encoder on the Hub, such as "
        "answerdotai/ModernBERT-base",
    ),
    "text2text-generation": TaskRow(
        target="hftune.tasks.text2text_generation:Text2TextGeneration",
        summary="An encoder-decoder that reads a text and writes another.",
        label_kind="text",
        batch_sizes=(8, 16),
        keys=("data.source_prefix", "data.max_target_length", "evaluation.generation"),
        peft_task_type="SEQ_2_SEQ_LM",
        encoder_decoder=True,
        generates=True,
        model_hint="name an encoder-decoder, such as --model google/flan-t5-small; a language "
        "model takes such rows with --task text-generation and the columns prompt and completion",
    ),
    "text-generation": TaskRow(
        target="hftune.tasks.text_generation:TextGeneration",
        summary="A causal language model on conversations, prompts and answers, or plain text.",
        label_kind="next_token",
        batch_sizes=(4, 8),
        keys=(
            "data.block_size",
            "data.pack_documents",
            "data.system_prompt",
            "evaluation.generation",
        ),
        peft_task_type="CAUSAL_LM",
        streamable=True,
        demo_model="demo:smollm2",
        model_hint="small, English; better: a chat model on the Hub, such as Qwen/Qwen3-0.6B",
        example_file="prompts.jsonl",
        guess_order=0,
    ),
}

#: A task without a row here, on whose models methods may be tried all the same: one without texts.
OTHER_TASK = TaskRow(
    target="", summary="A task of images.", label_kind="class", batch_sizes=(16, 64),
    modality="image",
)  # fmt: skip


def task_row(name: str) -> TaskRow:
    """Return the row of a task."""
    return TASKS.get(name, OTHER_TASK)


def make_task(name: str, label_names: Sequence[str] = (), **options: Any) -> "Task":
    """Return a task with its labels and options, as a saved model remembers them."""
    task: Task = TASKS[name].resolve()(label_names, **options)
    return task


def option_tasks() -> dict[str, tuple[str, ...]]:
    """Return key of a recipe -> the tasks that take it, for keys that not all tasks take."""
    keys = dict.fromkeys(key for row in TASKS.values() for key in row.keys)
    return {key: tuple(name for name, row in TASKS.items() if key in row.keys) for key in keys}
