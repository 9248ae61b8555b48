# SPDX-License-Identifier: Apache-2.0
"""Compute the loss of each training row under a reference model, and cache it.

The cache stores the losses in parts, as they are computed. So an interrupted pass continues, and a
resumed run reads the losses of its start.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from numpy.typing import NDArray
from transformers import TrainingArguments
from transformers.utils.hub import cached_file

from hftune.core import cache
from hftune.core.console import console, say
from hftune.core.errors import HftuneError
from hftune.core.files import atomic_write, sha256_of
from hftune.core.processes import on_main_process
from hftune.data.row_digest import rows_key
from hftune.losses.loss import forward
from hftune.models.load import load_weights
from hftune.models.save import METADATA_FILE
from hftune.runs.run import Run, load
from hftune.tasks.preprocess import preprocess_split
from hftune.tasks.processed import ProcessedDataset
from hftune.tasks.processors import Processor
from hftune.tasks.task import Task
from hftune.training.plan.choose_sampler import check_aligned

KEY = "data.curriculum.model"
#: Part of the cache's key: raise it when a row is judged differently.
VERSION = 1
#: Rows whose losses are computed and stored together.
PART = 512
LOSSES_FILE = "losses.npy"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The reference model that judges the rows.

    Attributes:
        name: Its name in messages.
        task: A task with the labels of the reference model.
        processor: Its processor.
        run: A finished run; None for the pretrained base model.
        location: Hub id or folder of the base model.
        revision: Revision of the base model.
        max_length: Largest number of tokens in a row.
    """

    name: str
    task: Task
    processor: Processor
    run: Run | None
    location: str
    revision: str | None
    max_length: int | None

    def model(self, arguments: TrainingArguments) -> Any:
        """Load the reference model in evaluation mode."""
        if self.run is not None:
            return self.run.model
        options = {"dtype": torch.float32, "revision": self.revision}
        model, _ = load_weights(self.task.auto_model, self.location, **options)
        return model.eval().to(arguments.device)

    def identity(self) -> list[str]:
        """Return hashes of the weights, or the commit on the Hub, as part of the cache key."""
        if self.run is not None:
            folder = self.run.model_path
            files = [*folder.glob("*.safetensors"), *folder.glob("*.skops"), folder / METADATA_FILE]
            return [sha256_of(file) for file in sorted(files)]
        folder = Path(self.location)
        if folder.is_dir():
            return [sha256_of(file) for file in sorted(folder.glob("*.safetensors"))]
        config = cached_file(self.location, "config.json", revision=self.revision)
        return [self.location, Path(str(config)).parent.name]  # the folder is named by the commit


def open_reference(
    path: str | None,
    task: Task,
    processor: Processor,
    *,
    location: str,
    revision: str | None,
    max_length: int | None,
) -> Reference:
    """Return the reference model, checked but not loaded.

    Args:
        path: Folder of a finished run; None for the pretrained base model.
        task: Task of the coming run, with its labels.
        processor: Processor of the coming run.
        location: Hub id or folder of its base model.
        revision: Revision of the base model.
        max_length: Largest number of tokens in one of its rows.

    Raises:
        HftuneError: There is no such run, or it was trained on something else.
    """
    opened = partial(Reference, location=location, revision=revision)
    if path is None:
        name = "the pretrained model"
        return opened(name=name, task=task, processor=processor, run=None, max_length=max_length)
    try:
        run = load(path)
    except HftuneError as error:
        raise HftuneError(f"{KEY}: {error.message}", hint=error.hint) from error
    judge = run.task
    _check_judge(path, run, judge, task, processor)
    return opened(
        name=path,
        task=judge,
        processor=run.processor,
        run=run,
        max_length=run.metadata.max_length,
    )


def _check_judge(path: str, run: Run, judge: Task, task: Task, processor: Processor) -> None:
    """Raise :class:`HftuneError` if a finished run cannot judge the rows of a task."""
    if run.metadata.task != task.name or judge.problem_type != task.problem_type:
        said, wanted = (one.problem_type or one.name for one in (judge, task))
        raise HftuneError(f"{KEY}: {path} is of {said}, and these rows of {wanted}")
    if unknown := sorted(set(task.label_names) - set(judge.label_names)):
        raise HftuneError(
            f"{KEY}: {path} does not know the labels {', '.join(unknown[:20])}",
            hint=f"it knows {', '.join(judge.label_names[:20])}",
        )
    if not task.label_names and not task.reads_alike(run.processor, processor):
        raise HftuneError(f"{KEY}: {path} reads other tokens than the model that is to be trained")


def reference_losses(
    reference: Reference, selected: Dataset, train: ProcessedDataset, arguments: TrainingArguments
) -> NDArray[np.float64]:
    """Return the loss of each training row, shape ``(N,)``; the main process computes them.

    Args:
        reference: The reference model.
        selected: Training rows, one column a role.
        train: The same rows encoded for the model to be trained.
        arguments: The Trainer's, with device, batch size and processes.

    Raises:
        HftuneError: A row has no loss of its own, or no finite loss.
    """
    rows = train.dataset
    if reference.task.label_names:  # the reference has its own tokens and order of labels
        check_aligned(KEY, reference.task, selected, train)
        encoded = preprocess_split(
            reference.task, selected, reference.processor, reference.max_length
        )
        check_aligned(KEY, reference.task, selected, encoded)
        rows = encoded.dataset
    size = arguments.per_device_eval_batch_size
    losses = on_main_process(arguments, partial(_judged, reference, rows, arguments, size))
    if not np.isfinite(losses).all():
        row = int(np.flatnonzero(~np.isfinite(losses))[0]) + 1
        raise HftuneError(f"{KEY}: {reference.name} has no finite loss on training row {row}")
    return losses


def _judged(
    reference: Reference, rows: Dataset, arguments: TrainingArguments, size: int
) -> NDArray[np.float64]:
    key = _key(reference, rows)
    folder = cache.find("difficulty", key)
    if folder is None:
        judge = partial(_judge, reference, rows, arguments, size)
        folder = cache.write_entry("difficulty", key, judge, resumable=True)
    with cache.until_read(folder):
        losses: NDArray[np.float64] = np.load(folder / LOSSES_FILE, allow_pickle=False)
    return losses


def _judge(
    reference: Reference, rows: Dataset, arguments: TrainingArguments, size: int, folder: Path
) -> None:
    """Compute the parts that are missing in the folder, and join all parts."""
    files = {start: folder / f"{start}.npy" for start in range(0, len(rows), PART)}
    missing = [start for start, file in files.items() if not file.exists()]
    say(f"curriculum: {reference.name} judges {len(rows)} rows, once for this content")
    model = reference.model(arguments)
    for start in _tracked(missing):
        part = rows.select(range(start, min(start + PART, len(rows))))
        content = io.BytesIO()
        np.save(content, _losses(model, reference, part, size), allow_pickle=False)
        atomic_write(files[start], content.getvalue())
    losses = np.concatenate([np.load(file, allow_pickle=False) for file in files.values()])
    np.save(folder / LOSSES_FILE, losses, allow_pickle=False)
    for file in files.values():
        file.unlink()


def _losses(model: Any, reference: Reference, part: Dataset, size: int) -> NDArray[np.float64]:
    """Return the losses of a part; batches of rows with similar lengths need little padding."""
    task = reference.task
    collate: Any = task.collator(reference.processor, model)
    lengths = ProcessedDataset(part).lengths()
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    losses = np.empty(len(part))
    for begin in range(0, len(part), size):
        indices = order[begin : begin + size]
        made = collate([part[index] for index in indices])
        batch = {key: value.to(model.device) for key, value in made.items()}
        with torch.inference_mode():
            logits = forward(model, batch).logits
            found = task.row_losses(logits, batch["labels"])
        losses[indices] = found.double().cpu().numpy()
    return losses


def _tracked(starts: Sequence[int]) -> Iterator[int]:
    from rich.progress import track

    yield from track(
        starts, "judging rows", console=console(), transient=True, disable=not console().is_terminal
    )


def _key(reference: Reference, rows: Dataset) -> str:
    """Return the digest of everything that decides the losses."""
    said = {
        "versions": [VERSION, torch.__version__, transformers.__version__],
        "model": reference.identity(),
        "task": [reference.task.name, reference.task.problem_type],
        "part": PART,
    }
    return rows_key(rows, rows.column_names, said)
