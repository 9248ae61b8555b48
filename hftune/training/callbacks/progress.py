# SPDX-License-Identifier: Apache-2.0
"""Show the progress of a run as a bar or as lines, and write log.jsonl and samples.jsonl."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hftune.core.console import console, say
from hftune.core.files import atomic_write
from hftune.evaluation import shown_metrics


class JsonLog(TrainerCallback):
    """Appends the Trainer's logs to ``log.jsonl``, one object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop lines that a resumed run writes again, and a line that a crash cut off."""
        if state.is_world_process_zero:
            _drop_after(self.path, state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write one line."""
        logs = kwargs["logs"]
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class SampleLog(TrainerCallback):
    """Appends the model's texts of an evaluation to ``samples.jsonl``, one row a line.

    Args:
        path: The file.
        samples: Returns the rows of the latest evaluation.
    """

    def __init__(self, path: Path, samples: Callable[[], list[dict[str, str]]]) -> None:
        self.path = path
        self.samples = samples

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop lines that a resumed run writes again."""
        if state.is_world_process_zero:
            _drop_after(self.path, state.global_step)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the rows of an evaluation during training."""
        self._write(state, final=False)

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Write the rows of the evaluation of the kept model."""
        self._write(state, final=True)

    def _write(self, state: TrainerState, *, final: bool) -> None:
        rows = self.samples()
        if state.is_world_process_zero and rows:
            with self.path.open("a", encoding="utf-8") as file:
                for row in rows:
                    line = {"step": state.global_step, "final": final, **row}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _drop_after(path: Path, step: int) -> None:
    """Drop the lines of a log after a step, and an incomplete last line."""
    if path.exists():
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        kept = [line for line in whole.split("\n") if line and json.loads(line)["step"] <= step]
        atomic_write(path, "".join(f"{line}\n" for line in kept))


class ProgressReport(TrainerCallback):
    """Shows steps, loss and time left: a live bar in a terminal, otherwise a line for each log."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._bar_task: Any = None
        self._began = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar if the output is a terminal."""
        self._began = time.perf_counter()
        if console().is_terminal and state.is_world_process_zero:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console(),
            )
            self._bar_task = self._bar.add_task(
                "training", total=state.max_steps, completed=state.global_step, note=""
            )
            self._bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._bar_task, completed=state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the loss, or the metrics of an evaluation."""
        logs = kwargs["logs"]
        if "loss" in logs and self._bar is not None:
            self._bar.update(self._bar_task, note=f"loss {logs['loss']:.4g}")
        elif "loss" in logs:
            seconds = time.perf_counter() - self._began
            say(
                f"step {state.global_step}/{state.max_steps}  epoch {state.epoch:.2f}  "
                f"loss {logs['loss']:.4g}  rate {logs['learning_rate']:.3g}  {seconds:.0f} s"
            )
        elif "eval_loss" in logs:
            shown = (
                f"{name} {logs[f'eval_{name}']:.4g}"
                for name in shown_metrics("progress")
                if f"eval_{name}" in logs
            )
            say(f"evaluation at step {state.global_step}: {'  '.join(shown)}")
        elif "eval_gap" in logs:
            say(
                f"training rows at step {state.global_step}: loss {logs['eval_train_loss']:.4g}  "
                f"gap {logs['eval_gap']:.4g}"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Stop the bar, also when training is interrupted."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
