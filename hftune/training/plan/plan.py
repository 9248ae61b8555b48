# SPDX-License-Identifier: Apache-2.0
"""A checked run that only lacks its weights."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.trainer_utils import IntervalStrategy

from hftune.core.console import number_of
from hftune.core.registry import Choice
from hftune.data import report
from hftune.data.report import data_report, imbalance, label_counts
from hftune.data.sampling.row_sampler import RowSampler
from hftune.distillation.teachers import NamedTeacher
from hftune.losses.loss import Loss
from hftune.methods.method import Method
from hftune.models.meta_model import empty_model
from hftune.optimization.schedule_factors import Span
from hftune.recipe.recipe import Recipe
from hftune.regularization.regularizers import Regularization
from hftune.tasks.context import RunContext
from hftune.tasks.task import ProcessedDataset, Task
from hftune.training.distributed.launcher import Launch
from hftune.training.plan.arguments import mixed_precision
from hftune.training.plan.examples import Examples
from hftune.training.plan.optimization import Optimization
from hftune.training.plan.streaming import TokenStream
from hftune.training.plan.training_steps import batches_per_epoch, span_of
from hftune.training.sampling.token_batches import TokenBatches

PERCENTILES = (50, 90, 99, 100)


@dataclass
class Plan:
    """A checked run that only lacks its weights.

    Attributes:
        recipe: What was asked for.
        arguments: The Trainer's arguments; ``output_dir`` is the run's checkpoint folder.
        task: Knows its label names.
        location: Hub id or folder of the base model.
        config: The model's config with overrides and labels.
        config_changes: Fields that the task set in it, which a plain load must be told.
        tokenizer: The base model's.
        parts: The rows before tokenizing.
        train: Preprocessed training rows; of a stream, the first ones.
        validation: Preprocessed validation rows, if there are any.
        max_length: Tokens a row may have; None for no limit.
        method: What trains.
        loss: Fitted to the training rows.
        launch: What the launcher asked for.
        optimization: Optimizer, schedule, clipping and average.
        regularization: Dropout of every kind, noise, and sharpness-aware steps.
        loss_choice: Its name and options; None for a loss of one's own.
        adapted: The model without weights as the method changes it, where that can be known.
        drawing: Chooses the rows of an epoch, where that is not each of them once.
        token_batches: What each batch holds, where that is not a number of rows.
        stream: What trains in place of ``train``, with ``data.streaming``.
        new_modules: What the checkpoint lacks or is drawn anew, once the base is loaded.
        base_fingerprint: What an adapter remembers of its base, once that is loaded.
        teachers: Who teaches, without weights.
        unlabelled: Preprocessed rows that a teacher alone teaches.
        whole_config: Of the model with all its layers, where the recipe keeps some of them.
    """

    recipe: Recipe
    arguments: TrainingArguments
    task: Task
    location: str
    config: PreTrainedConfig
    config_changes: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    parts: Examples
    train: ProcessedDataset
    validation: ProcessedDataset | None
    max_length: int | None
    method: Method
    loss: Loss
    launch: Launch
    optimization: Optimization
    regularization: Regularization
    loss_choice: Choice | None = None
    adapted: nn.Module | None = None
    drawing: RowSampler | None = None
    token_batches: TokenBatches | None = None
    stream: TokenStream | None = None
    base_fingerprint: dict[str, str] | None = None
    new_modules: tuple[str, ...] = ()
    teachers: Sequence[NamedTeacher] = ()
    unlabelled: ProcessedDataset | None = None
    whole_config: PreTrainedConfig | None = None

    def context(self, new_modules: tuple[str, ...] = ()) -> RunContext:
        """Return what the method may know."""
        arguments = self.arguments
        return RunContext(
            task=self.task.name,
            new_modules=new_modules,
            num_training_steps=self.span.total,
            learning_rate=arguments.learning_rate,
            steps_per_epoch=self.span.epoch,
            gradient_checkpointing=bool(
                arguments.gradient_checkpointing or arguments.activation_checkpointing
            ),
            mixed_precision=mixed_precision(arguments),
            seed=arguments.seed,
            device=arguments.device,
            eval_batch_size=arguments.per_device_eval_batch_size,
            world_size=arguments.world_size,
            process_index=arguments.process_index,
            revision=self.recipe.model.revision,
            tokenizer=self.tokenizer,
        )

    @property
    def span(self) -> Span:
        """How long run, warmup and epoch are."""
        if self.stream is not None:
            return span_of(self.arguments, None)
        if self.token_batches is not None:
            return span_of(self.arguments, len(self.token_batches))
        rows = self.train.num_rows if self.drawing is None else self.drawing.size
        rows += 0 if self.unlabelled is None else self.unlabelled.num_rows
        return span_of(self.arguments, batches_per_epoch(self.arguments, rows))

    def skeleton(self, config: PreTrainedConfig | None = None) -> PreTrainedModel:
        """Return the model without weights, on the meta device.

        Args:
            config: In place of the model's own.
        """
        attention = self.recipe.model.attention
        return empty_model(self.task.auto_model, config or self.config, attention)

    def report(self) -> dict[str, Any]:
        """Return ``data.json``: sources, hashes, counts, lengths, duplicates, scripts."""
        counts = self.class_counts()
        return {
            "sources": self.parts.sources,
            "streamed": self.stream is not None,
            "columns": self.parts.columns,
            "max_length": self.max_length,
            "empty_texts": self.parts.empty_texts,
            "train": _part_report(self.train),
            "validation": None if self.validation is None else _part_report(self.validation),
            **({} if self.unlabelled is None else {"unlabelled": _part_report(self.unlabelled)}),
            "classes": dict(zip(self.task.label_names, map(int, counts), strict=False)),
            "imbalance": imbalance(counts) if self.task.label_names else None,
            **self.data_report,
        }

    @cached_property
    def data_report(self) -> dict[str, Any]:
        """What the selected rows hold; see :func:`hftune.data.report.data_report`."""
        return data_report(self.parts.train, self.parts.validation)

    def class_counts(self) -> NDArray[np.integer[Any]]:
        """Return how often each class is a label, of all training rows where that can be known."""
        if self.train.sampled_from is not None and self.task.one_class:
            return label_counts(self.parts.train, self.task.label_names)
        return self.task.class_counts(self.train.dataset, self.num_classes())

    def remarks(self) -> list[str]:
        """Return what the user should know of what does not count as meant."""
        parts = [part for part in (self.train, self.validation) if part is not None]
        remarks = []
        if self.arguments.max_steps > 0 and "num_train_epochs" in self.recipe.training:
            remarks.append(
                f"training.max_steps: {self.arguments.max_steps} ends the run, so "
                "training.num_train_epochs has no effect"
            )
        if self.stream is not None:
            remarks.append("the training rows are streamed; what is said here is of the first ones")
        if untrained := sum(part.num_without_labels for part in parts):
            rows = number_of(untrained, "row has", "rows have")
            remarks.append(f"{rows} no trained token, so training leaves them out")
        if expanded := sum(part.expanded for part in parts):
            remarks.append(
                f"the chat template rewrites earlier turns, so conversations became one row for "
                f"each assistant turn: {number_of(expanded, 'row', 'rows')} more"
            )
        if empty := self.parts.empty_texts:
            rows = number_of(empty, "training row has", "training rows have")
            remarks.append(f"{rows} an empty text")
        remarks += self.optimization.remarks(self.span, self.arguments.learning_rate)
        remarks += self._never_reached()
        return [*remarks, *self.task.remarks(self.parts.train), *report.remarks(self.data_report)]

    def _never_reached(self) -> Iterator[str]:
        """What waits longer than the run lasts."""
        total, patience = self.span.total, self.recipe.training.get("early_stopping_patience")
        evaluations = self._evaluations()
        has = f"and the run has {number_of(evaluations, 'evaluation', 'evaluations')}"
        if patience is not None and patience >= evaluations:
            yield f"training.early_stopping_patience: {patience}, {has}, so it cannot end early"
        if (usual := self.optimization.schedule_row.default_patience) is not None:
            waits = self.optimization.schedule_kwargs.get("patience", usual)
            if waits + 1 >= evaluations:  # the first is the best so far
                yield (
                    f"training.lr_scheduler_kwargs: patience {waits}, {has}, so the rate cannot "
                    "fall in time"
                )
        if self.drawing is not None:
            yield from self.drawing.remarks(evaluations)
        teaching = self.recipe.distillation
        if teaching is not None and teaching.warmup_steps >= max(total, 1):
            yield (
                f"distillation.warmup_steps: {teaching.warmup_steps:g}, and the run has {total} "
                "optimizer steps, so alpha never reaches its value"
            )

    def _evaluations(self) -> int:
        """How many evaluations the run has while it trains."""
        arguments, span = self.arguments, self.span
        if arguments.eval_strategy == IntervalStrategy.STEPS:
            every = arguments.eval_steps or 1
            return span.total // int(every if every >= 1 else max(1, math.ceil(span.total * every)))
        if arguments.eval_strategy == IntervalStrategy.EPOCH and span.epoch:
            return math.ceil(span.total / span.epoch)
        return 0

    def num_classes(self) -> int:
        """Return how many classes the model's head tells apart."""
        named = self.task.unnamed_outputs or len(self.task.label_names)
        return named or int(self.config.get_text_config().vocab_size)


def _part_report(part: ProcessedDataset) -> dict[str, Any]:
    lengths = np.percentile(part.sizes, PERCENTILES, method="inverted_cdf")
    return {
        "rows": part.num_rows,
        "cut": part.num_truncated,
        "untrained": part.num_without_labels,
        "length_percentiles": dict(zip(map(str, PERCENTILES), map(int, lengths), strict=True)),
    }
