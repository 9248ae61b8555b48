# SPDX-License-Identifier: Apache-2.0
"""Build the splits of a run: its rows as tokens, their sampler and their batches."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from torch import nn

from hftune.core.console import say
from hftune.core.errors import RecipeError
from hftune.data.report import label_counts
from hftune.data.sampling import DIFFICULTIES
from hftune.data.sampling.row_sampler import RowSampler
from hftune.data.section import CurriculumChoice
from hftune.recipe.recipe import Recipe
from hftune.tasks.preprocess import preprocess_split
from hftune.tasks.processed import ProcessedDataset
from hftune.tasks.task import Task
from hftune.training.plan.choose_sampler import build_row_sampler
from hftune.training.plan.examples import Examples, read_examples
from hftune.training.plan.pretrained import Pretrained, model_without_weights
from hftune.training.plan.reference_losses import open_reference, reference_losses
from hftune.training.plan.settings import Settings
from hftune.training.plan.streaming import TokenStream, open_stream, token_stream
from hftune.training.plan.token_budget import token_batches
from hftune.training.sampling.token_batches import TokenBatches


@dataclass(frozen=True)
class Splits:
    """The rows of a run.

    Attributes:
        examples: The rows before tokenization.
        train: Preprocessed training rows; the first rows of a stream.
        validation: Preprocessed validation rows, if there are any.
        unlabelled: Preprocessed rows without labels, for a teacher, if there are any.
        stream: Replaces ``train`` in training, with ``data.streaming``.
        row_sampler: Chooses the rows of an epoch; None if each row comes once.
        token_batches: Batches by number of tokens; None for a fixed number of rows.
    """

    examples: Examples
    train: ProcessedDataset
    validation: ProcessedDataset | None = None
    unlabelled: ProcessedDataset | None = None
    stream: TokenStream | None = None
    row_sampler: RowSampler | None = None
    token_batches: TokenBatches | None = None

    @property
    def rows_per_epoch(self) -> int:
        """Number of rows of an epoch."""
        rows = self.train.num_rows if self.row_sampler is None else self.row_sampler.size
        return rows + (0 if self.unlabelled is None else self.unlabelled.num_rows)

    @property
    def named(self) -> dict[str, ProcessedDataset]:
        """The existing splits, by name."""
        splits = {"train": self.train, "unlabelled": self.unlabelled, "validation": self.validation}
        return {name: split for name, split in splits.items() if split is not None}

    def class_counts(self, task: Task, num_classes: int) -> NDArray[np.integer[Any]]:
        """Return the number of labels of each class, over all training rows if possible."""
        if self.train.sampled_from is not None and task.one_class:
            return label_counts(self.examples.train, task.label_names)
        return task.class_counts(self.train.dataset, num_classes)


def open_examples(
    recipe: Recipe, task: Task, train: Dataset | None, validation: Dataset | None
) -> Examples:
    """Read the rows of a run, or the first rows of a stream.

    Args:
        recipe: Its data section names the rows.
        task: Selects the columns.
        train: Rows in place of ``data.path``.
        validation: Rows in place of ``data.validation``.

    Raises:
        HftuneError: Rows are missing or broken, or the columns cannot be guessed.
    """
    if not recipe.data.streaming:
        examples = read_examples(recipe, task, train, validation)
    elif train is validation is None:
        examples = open_stream(recipe, task)
    else:
        raise RecipeError(["data.streaming: rows handed over in Python are not streamed"])
    columns = examples.columns
    guessed = columns.keys() - recipe.data.columns.keys()
    if guessed:
        say(f"columns: {', '.join(f'{r} = {c}' for r, c in columns.items() if r in guessed)}")
    return examples


def build_splits(
    settings: Settings,
    pretrained: Pretrained,
    task: Task,
    examples: Examples,
    *,
    own_model: nn.Module | None = None,
    sample: int | None = None,
) -> Splits:
    """Preprocess the rows, and build sampler and batches of the training rows.

    Args:
        settings: The recipe names sampler and token budget.
        pretrained: Its processor encodes the rows.
        task: Preprocesses the rows.
        examples: The rows.
        own_model: The user's own model, which replaces the recipe's.
        sample: Rows of a large split to preprocess, for a check without training; None for all.

    Raises:
        HftuneError: No row can be trained on, or the rows do not suit sampler or token budget.
    """
    processor, limit = pretrained.processor, pretrained.max_length
    encode = partial(preprocess_split, task, processor=processor, max_length=limit, sample=sample)
    splits = Splits(
        examples=examples,
        train=encode(examples.train),
        validation=None if examples.validation is None else encode(examples.validation),
        unlabelled=None if examples.unlabelled is None else encode(examples.unlabelled),
    )
    if examples.stream is not None:
        shared = task, processor, limit, settings.arguments
        stream = token_stream(examples.stream, examples.columns, *shared)
        splits = replace(splits, stream=stream)
    row_sampler = _row_sampler(settings, pretrained, task, splits, looks=sample is not None)
    splits = replace(splits, row_sampler=row_sampler)
    if settings.recipe.data.token_budget is None:
        return splits
    batches = _token_batches(settings, pretrained, splits, task, own_model)
    return replace(splits, token_batches=batches)


def _token_batches(
    settings: Settings,
    pretrained: Pretrained,
    splits: Splits,
    task: Task,
    model: nn.Module | None,
) -> TokenBatches:
    """Return the batches of a token budget, including rows without labels."""
    config = pretrained.config
    if model is None:
        model = model_without_weights(settings, task, config)
    trained = [split for split in (splits.train, splits.unlabelled) if split is not None]
    targets = config.is_encoder_decoder
    return token_batches(settings, trained, splits.row_sampler, model, targets=targets)


def _row_sampler(
    settings: Settings, pretrained: Pretrained, task: Task, splits: Splits, *, looks: bool
) -> RowSampler | None:
    """Return the sampler of an epoch's rows; a check runs no reference model."""
    recipe, examples, train = settings.recipe, splits.examples, splits.train
    chosen = cast("CurriculumChoice | None", recipe.data.curriculum)
    draw = partial(build_row_sampler, recipe, task, examples.train, examples.drawn_by, train)
    if chosen is None or not DIFFICULTIES[chosen.name].needs_reference:
        return draw()
    reference = open_reference(
        chosen.model,
        task,
        pretrained.processor,
        location=pretrained.path,
        revision=recipe.model.revision,
        max_length=pretrained.max_length,
    )
    if looks:
        return draw()
    return draw(partial(reference_losses, reference, examples.train, train, settings.arguments))
