# SPDX-License-Identifier: Apache-2.0
"""The plan: a checked run that lacks only its weights."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hftune.data.report import data_report, imbalance
from hftune.optimization.schedule_factors import TrainingSteps
from hftune.tasks.context import RunContext
from hftune.tasks.processed import ProcessedDataset
from hftune.training.plan.arguments import mixed_precision, weight_dtype
from hftune.training.plan.objective import Objective, num_classes
from hftune.training.plan.pretrained import Pretrained
from hftune.training.plan.settings import Settings
from hftune.training.plan.splits import Splits
from hftune.training.plan.training_steps import batches_per_epoch, count_training_steps

PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True)
class Plan:
    """A checked run that lacks only its weights.

    A plan and its parts never change: ``dataclasses.replace`` and :meth:`with_arguments` return
    changed copies.

    Attributes:
        settings: Recipe, launcher, arguments, optimization and regularization.
        pretrained: Config and tokenizer of the pretrained model.
        splits: The rows.
        objective: Task, method, loss and teachers.
    """

    settings: Settings
    pretrained: Pretrained
    splits: Splits
    objective: Objective

    def with_arguments(self, **fields: object) -> "Plan":
        """Return the plan with other values in some fields of the Trainer's arguments."""
        return replace(self, settings=self.settings.with_arguments(**fields))

    @property
    def training_steps(self) -> TrainingSteps:
        """Optimizer steps of the run, of its warmup and of an epoch."""
        arguments, splits = self.settings.arguments, self.splits
        if splits.stream is not None:
            return count_training_steps(arguments, None)
        if splits.token_batches is not None:
            return count_training_steps(arguments, len(splits.token_batches))
        return count_training_steps(arguments, batches_per_epoch(arguments, splits.rows_per_epoch))

    def context(self, new_modules: tuple[str, ...] = ()) -> RunContext:
        """Return the facts about the run that techniques read."""
        settings, pretrained, steps = self.settings, self.pretrained, self.training_steps
        recipe, arguments = settings.recipe, settings.arguments
        return RunContext(
            task=self.objective.task.name,
            new_modules=new_modules,
            num_training_steps=steps.total,
            learning_rate=arguments.learning_rate,
            steps_per_epoch=steps.per_epoch,
            gradient_checkpointing=bool(
                arguments.gradient_checkpointing or arguments.activation_checkpointing
            ),
            mixed_precision=mixed_precision(arguments),
            dtype=weight_dtype(recipe, arguments),
            seed=arguments.seed,
            device=arguments.device,
            eval_batch_size=arguments.per_device_eval_batch_size,
            world_size=arguments.world_size,
            process_index=arguments.process_index,
            path=pretrained.path,
            revision=recipe.model.revision,
            config=pretrained.config,
            config_changes={**recipe.model.config, **pretrained.config_changes},
            attention=recipe.model.attention,
            processor=pretrained.processor,
            num_classes=self.num_classes(),
        )

    def num_classes(self) -> int:
        """Return the number of classes of the model's head."""
        return num_classes(self.objective.task, self.pretrained.config)

    def class_counts(self) -> NDArray[np.integer[Any]]:
        """Return the number of labels of each class, over all training rows if possible."""
        return self.splits.class_counts(self.objective.task, self.num_classes())

    @cached_property
    def data_report(self) -> dict[str, Any]:
        """The report on the selected rows; see :func:`hftune.data.report.data_report`."""
        return data_report(self.splits.examples.train, self.splits.examples.validation)

    def report(self) -> dict[str, Any]:
        """Return the content of ``data.json``: sources, counts, lengths, duplicates and scripts."""
        counts, splits, labels = self.class_counts(), self.splits, self.objective.task.label_names
        examples, unlabelled = splits.examples, splits.unlabelled
        return {
            "sources": examples.sources,
            "streamed": splits.stream is not None,
            "columns": examples.columns,
            "max_length": self.pretrained.max_length,
            "empty_texts": examples.empty_texts,
            "train": _split_report(splits.train),
            "validation": None if splits.validation is None else _split_report(splits.validation),
            **({} if unlabelled is None else {"unlabelled": _split_report(unlabelled)}),
            "classes": dict(zip(labels, map(int, counts), strict=False)),
            "imbalance": imbalance(counts) if labels else None,
            **self.data_report,
        }


def _split_report(split: ProcessedDataset) -> dict[str, Any]:
    lengths = np.percentile(split.sizes, PERCENTILES, method="inverted_cdf")
    return {
        "rows": split.num_rows,
        "cut": split.num_truncated,
        "untrained": split.num_without_labels,
        "length_percentiles": dict(zip(map(str, PERCENTILES), map(int, lengths), strict=True)),
    }
