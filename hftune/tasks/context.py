# SPDX-License-Identifier: Apache-2.0
"""Facts about a run that a technique may ask for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from hftune.core.task_rows import TaskRow
from hftune.tasks import task_row
from hftune.tasks.processors import Processor, as_tokenizer

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Facts about the run that a method, a teacher or a probe serves.

    Attributes:
        task: The Hub's name of the task.
        new_modules: Names of modules that the checkpoint lacks; they train and are saved.
        num_training_steps: Optimizer steps of the whole run.
        learning_rate: The schedule's highest.
        steps_per_epoch: Optimizer steps of one pass over the rows; None for a stream.
        gradient_checkpointing: Whether activations are recomputed in the backward pass.
        mixed_precision: Precision of the forward pass: ``no``, ``bf16``, ``fp16`` or ``fp8``.
        dtype: Of the loaded weights; ``auto`` for that of the checkpoint.
        path: Folder or Hub id of the base model.
        revision: Of the base model on the Hub.
        config: Of the model, as recipe and task have changed it.
        config_changes: Fields of the config that recipe and task have set.
        attention: ``attn_implementation``; None for Transformers' choice.
        processor: Of the base model.
        num_classes: Number of classes that the model's head tells apart.
        seed: Of all draws.
        device: Of the model and its batches.
        eval_batch_size: Rows of one batch, where nothing trains.
        world_size: Number of processes.
        process_index: Of this process; 0 is the main one.
    """

    task: str
    new_modules: tuple[str, ...] = ()
    num_training_steps: int = 1
    learning_rate: float = 5e-5
    steps_per_epoch: int | None = None
    gradient_checkpointing: bool = False
    mixed_precision: str = "no"
    dtype: torch.dtype | Literal["auto"] = "auto"
    path: str = ""
    revision: str | None = None
    config: PreTrainedConfig | None = None
    config_changes: Mapping[str, Any] = field(default_factory=dict)
    attention: str | None = None
    processor: Processor | None = None
    num_classes: int = 0
    seed: int = 42
    device: torch.device = CPU
    eval_batch_size: int = 8
    world_size: int = 1
    process_index: int = 0

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor of a task of texts."""
        assert self.processor is not None, "a run has one"
        return as_tokenizer(self.processor)

    @property
    def task_row(self) -> TaskRow:
        """Facts about the task."""
        return task_row(self.task)
