# SPDX-License-Identifier: Apache-2.0
"""What differs by task: columns, model class, preprocessing, collator, metrics."""

from hftune.core.rows import Row

TASKS = {
    "text-classification": Row(
        target="hftune.tasks.text_classification:TextClassification",
        summary="One label for a text or a pair of texts.",
    ),
    "token-classification": Row(
        target="hftune.tasks.token_classification:TokenClassification",
        summary="A tag for each word: entities, slots, parts of speech.",
    ),
    "text2text-generation": Row(
        target="hftune.tasks.text2text_generation:Text2TextGeneration",
        summary="An encoder-decoder that reads a text and writes another.",
    ),
    "text-generation": Row(
        target="hftune.tasks.text_generation:TextGeneration",
        summary="A causal language model on conversations, prompts and answers, or plain text.",
    ),
}
