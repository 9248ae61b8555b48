# SPDX-License-Identifier: Apache-2.0
"""Measure tokens per second, share of padding and peak memory of a training run."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hftune.core.processes import peak_memory
from hftune.losses.loss import ROW, counted


class Throughput(TrainerCallback):
    """Counts tokens, positions, and the seconds from the batches of a step to its end.

    Evaluation and saving do not count.

    Attributes:
        padding_free: Whether the layers skip padding.
    """

    def __init__(self) -> None:
        self.padding_free = False
        self.tokens: Any = 0
        self.positions = 0
        self.seconds = 0.0
        self._began = 0.0

    def begin(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Count the batches of one optimizer step and start its clock."""
        self._began = time.perf_counter()
        for batch in batches:
            labels = batch["labels"]
            labelled = counted(labels).reshape(len(labels), -1).any(1)
            counts = batch[ROW] >= 0 if ROW in batch else labelled  # blank rows count as padding
            mask = batch.get("attention_mask", torch.ones_like(counts)[:, None])  # or whole rows
            self.positions += mask.numel()
            self.tokens += (mask * counts[:, None]).sum()  # a tensor: the GPU need not wait

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock of the step."""
        self.seconds += time.perf_counter() - self._began

    def summary(self, accelerator: Accelerator) -> dict[str, Any]:
        """Return the metrics over all processes; peak memory, in MiB, is of this process."""
        counts = torch.tensor([int(self.tokens), self.positions], device=accelerator.device)
        tokens, positions = accelerator.reduce(counts, reduction="sum").tolist()
        result: dict[str, Any] = {
            "train_tokens": tokens,
            "train_tokens_per_second": round(tokens / max(self.seconds, 1e-9), 1),
            "train_padding_share": round(1 - tokens / max(positions, 1), 4),
            "padding_free": self.padding_free,
        }
        return {**result, **peak_memory()}
