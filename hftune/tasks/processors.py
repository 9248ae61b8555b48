# SPDX-License-Identifier: Apache-2.0
"""The type of a task's processor: what turns raw inputs into inputs of a model."""

from transformers import BaseImageProcessor, PreTrainedTokenizerBase, ProcessorMixin
from transformers.feature_extraction_utils import FeatureExtractionMixin

#: A tokenizer of texts, an image processor, a feature extractor of sounds, or several of them.
Processor = PreTrainedTokenizerBase | BaseImageProcessor | FeatureExtractionMixin | ProcessorMixin


def as_tokenizer(processor: Processor) -> PreTrainedTokenizerBase:
    """Return the processor of a task of texts, which is a tokenizer."""
    assert isinstance(processor, PreTrainedTokenizerBase), "tasks of texts load a tokenizer"
    return processor
