# SPDX-License-Identifier: Apache-2.0
"""The run folder: where it goes, who writes in it, and what a finished run gives back."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from hftune.core.errors import HftuneError
from hftune.methods import method_row
from hftune.models.load import load_processor
from hftune.models.save import ModelMetadata, read_metadata
from hftune.recipe.recipe import Recipe
from hftune.tasks import make_task
from hftune.tasks.task import Task

RECIPE_FILE = "recipe.yaml"
LOCK_FILE = ".lock"
PACKAGES = ("hftune", "torch", "transformers", "peft", "datasets", "accelerate", "tokenizers",
            "scikit-learn")  # fmt: skip


class Run:
    """A run folder.

    Attributes:
        path: The folder: recipe.yaml, environment.json, data.json, log.jsonl, metrics.json,
            checkpoints/, model/, plots/.
    """

    def __init__(self, path: str | Path, *, model: Any = None, processor: Any = None) -> None:
        self.path = Path(path)
        if model is not None:
            self.model, self.processor = model, processor

    @property
    def model_path(self) -> Path:
        """The adapter or model with its tokenizer and card; the run may be named by it, too."""
        return self.path if read_metadata(self.path) is not None else self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """What ``--resume`` continues from."""
        return self.path / "checkpoints"

    def check_finished(self) -> None:
        """Raise :class:`HftuneError` if there is no finished model."""
        if read_metadata(self.model_path) is None:
            raise HftuneError(
                f"{self.path}: no finished model in it",
                hint="give a run folder, such as runs/quickstart, or its model folder",
            )

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return Recipe.load(self.path / RECIPE_FILE)

    @property
    def metrics(self) -> dict[str, Any]:
        """The figures of metrics.json."""
        figures: dict[str, Any] = json.loads((self.path / "metrics.json").read_text("utf-8"))
        return figures

    @cached_property
    def metadata(self) -> ModelMetadata:
        """What the saved model remembers.

        Raises:
            HftuneError: The folder holds no finished model.
        """
        self.check_finished()
        metadata = read_metadata(self.model_path)
        assert metadata is not None
        return metadata

    @cached_property
    def model(self) -> Any:
        """The fine-tuned model, in evaluation mode."""
        method = method_row(self.metadata.method).resolve()
        return method.load_saved(self.model_path, self.metadata, self.task.auto_model)

    @cached_property
    def processor(self) -> Any:
        """The processor saved with the model: a tokenizer, for models of texts."""
        return load_processor(self.task.auto_processor, str(self.model_path))

    @property
    def tokenizer(self) -> Any:
        """The processor, by its name for models of texts."""
        return self.processor

    @property
    def task(self) -> Task:
        """The task, with its label names."""
        known = self.metadata
        return make_task(known.task, known.label_names, **known.task_options)


def load(path: str | Path) -> Run:
    """Return a finished run, to evaluate, predict, or take its ``model`` and ``tokenizer``.

    Args:
        path: A run folder, or the ``model`` folder inside one.

    Raises:
        HftuneError: There is no finished model.
    """
    run = Run(path)
    run.check_finished()
    return run


def choose_folder(recipe: Recipe) -> Path:
    """Return the run folder of a new run.

    ``training.output_dir`` if the recipe names one; else ``runs/NAME`` after the recipe's file, or
    the next free ``runs/NAME-2``.

    Raises:
        HftuneError: The folder is not empty, or cannot be written.
    """
    given = recipe.training.get("output_dir")
    if given is not None:
        folder = Path(given)
        _check_free(folder)
        return folder
    origin = recipe.origin
    name = "run"
    if origin is not None:
        name = origin.resolve().parent.name if origin.name == RECIPE_FILE else origin.stem
    number, folder = 1, Path("runs", name)
    while folder.exists():
        number += 1
        folder = Path("runs", f"{name}-{number}")
    _check_free(folder)
    return folder


def _check_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise HftuneError(f"training.output_dir: {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()):
        raise HftuneError(
            f"training.output_dir: {folder} is not empty",
            hint=f"name another folder, or continue that run: hftune train {folder} --resume",
        )
    above = folder
    while not above.exists():
        above = above.absolute().parent
    if not os.access(above, os.W_OK | os.X_OK):
        raise HftuneError(f"training.output_dir: {folder} cannot be written")


@contextmanager
def locked_run_folder(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process.

    Raises:
        HftuneError: Another process is writing there, or it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HftuneError(
            f"training.output_dir: {folder} cannot be created: {error.strerror}"
        ) from error
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise HftuneError(f"{folder} is in use by another run") from None
    try:
        yield
    finally:
        lock.release()
        (folder / LOCK_FILE).unlink(missing_ok=True)
        for empty in (Run(folder).checkpoints, folder):  # where nothing came of the run
            with suppress(OSError):
                empty.rmdir()


def environment(arguments: Any, **in_force: Any) -> dict[str, Any]:
    """Return ``environment.json``: versions, hardware, and what the launcher decided.

    Args:
        arguments: The Trainer's.
        in_force: Precision and distribution, as the Accelerator has them.
    """
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version(name) for name in PACKAGES},
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": str(arguments.device.type),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "processes": arguments.world_size,
        **in_force,
    }
