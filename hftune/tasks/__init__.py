# SPDX-License-Identifier: Apache-2.0
"""What differs by task: columns, model class, preprocessing, collator, metrics."""

from hftune.core.registry import TaskRow

TASKS = {
    "text-classification": TaskRow(
        target="hftune.tasks.text_classification:TextClassification",
        summary="One label for a text or a pair of texts.",
    ),
    "token-classification": TaskRow(
        target="hftune.tasks.token_classification:TokenClassification",
        summary="A tag for each word: entities, slots, parts of speech.",
    ),
    "text2text-generation": TaskRow(
        target="hftune.tasks.text2text_generation:Text2TextGeneration",
        summary="An encoder-decoder that reads a text and writes another.",
    ),
    "text-generation": TaskRow(
        target="hftune.tasks.text_generation:TextGeneration",
        summary="A causal language model on conversations, prompts and answers, or plain text.",
    ),
}
