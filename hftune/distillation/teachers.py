# SPDX-License-Identifier: Apache-2.0
"""Find and load teachers by name: runs of hftune, adapters and models."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from hftune.core.errors import HftuneError, first_line
from hftune.core.files import sha256_of
from hftune.distillation.section import DistillationSection
from hftune.methods import method_row
from hftune.methods.peft_tuners import register_tuners
from hftune.models.adapter import check_adapter_files, is_adapter
from hftune.models.load import (
    load_config,
    load_finetuned,
    load_tokenizer,
    load_weights,
    pretrained_path,
)
from hftune.models.load_generator import load_language_model
from hftune.models.save import ModelMetadata, read_metadata
from hftune.tasks import TASKS
from hftune.tasks.task import Task

KEY = "distillation.teacher"
#: Transformers' name of a label without a name.
UNNAMED = re.compile(r"LABEL_\d+")


@dataclass(frozen=True, kw_only=True)
class NamedTeacher:
    """A teacher without its weights.

    Attributes:
        path: Its name in the recipe.
        folder: Folder of its files, or its Hub id.
        base: Folder or Hub id of the base model of an adapter; None for a whole model.
        metadata: The metadata that hftune saved; None for a model that hftune did not train.
        config: Config of its model.
        tokenizer: Its tokenizer.
    """

    path: str
    folder: str
    base: str | None
    metadata: ModelMetadata | None
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase

    @property
    def label_names(self) -> list[str]:
        """Its labels by id; empty if they have no names."""
        if self.metadata is not None:
            return self.metadata.label_names
        by_id: Any = self.config.id2label or {}
        names = [str(by_id[index]) for index in range(len(by_id))]
        return [] if all(map(UNNAMED.fullmatch, names)) else names

    @property
    def problem_type(self) -> str | None:
        """Its ``config.problem_type``; None if it is not set."""
        if self.metadata is not None:
            return self.metadata.task_options.get("problem_type")
        return self.config.problem_type

    def order(self, names: Sequence[str]) -> list[int] | None:
        """Return its id of each of the student's labels; None if the ids are equal."""
        mine = self.label_names
        return None if not mine or mine == list(names) else [mine.index(name) for name in names]

    def fingerprint(self) -> str:
        """Return a digest of its files, or of its commit on the Hub."""
        digest = hashlib.sha256()
        for place in (self.folder, *([] if self.base is None else [self.base])):
            folder = Path(place)
            if not folder.is_dir():
                digest.update(f"{place}@{self.config._commit_hash}".encode())
            for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
                digest.update(f"{file.name} {sha256_of(file)}\n".encode())
        return digest.hexdigest()


def find_teachers(section: DistillationSection | None, task: type[Task]) -> list[NamedTeacher]:
    """Return the teachers that a recipe names.

    Args:
        section: The recipe's ``distillation``, if it has one.
        task: The student's.

    Raises:
        HftuneError: A teacher does not exist, or was trained for another task.
    """
    return [] if section is None else [_find(path, task) for path in section.teachers]


def _find(path: str, task: type[Task]) -> NamedTeacher:
    with _said_of(path):
        folder = Path(path) / "model" if read_metadata(Path(path) / "model") else Path(path)
        if (folder / "recipe.yaml").exists():
            raise HftuneError(f"{path}: the run has no finished model")
        metadata = read_metadata(folder)
        if metadata is not None:
            return _finetuned(path, folder, metadata, task)
        if is_adapter(folder):
            return _plain_adapter(path, folder, task)
        location = pretrained_path(path)
        config = load_config(location, {})
        _check_head(path, config, task)
        return NamedTeacher(path=path, folder=location, base=None, metadata=None, config=config,
                       tokenizer=load_tokenizer(location))  # fmt: skip


def _finetuned(path: str, folder: Path, metadata: ModelMetadata, task: type[Task]) -> NamedTeacher:
    if metadata.task != task.name:
        raise HftuneError(
            f"{path}: it was trained for {metadata.task}, and the student for {task.name}"
        )
    if method_row(metadata.method).saves == "classifier":
        raise HftuneError(
            f"{path}: a {metadata.method} is no teacher: its answers come from outside the network",
            hint="take a run of another method",
        )
    base = pretrained_path(metadata.base_model) if is_adapter(folder) else None
    if base is None:
        config = load_config(str(folder), {})
    else:
        check_adapter_files(folder, metadata.adapter_sha256)
        config = load_config(base, metadata.config, metadata.base_revision)
    return NamedTeacher(path=path, folder=str(folder), base=base, metadata=metadata, config=config,
                   tokenizer=load_tokenizer(str(folder)))  # fmt: skip


def _plain_adapter(path: str, folder: Path, task: type[Task]) -> NamedTeacher:
    if not TASKS[task.name].writes:
        raise HftuneError(
            f"{path}: an adapter that hftune did not train does not say its labels",
            hint="merge it with PEFT, set id2label in the config, and name the merged model",
        )
    check_adapter_files(folder)
    base = pretrained_path(str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path))
    with_tokens = (folder / "tokenizer_config.json").exists()
    return NamedTeacher(path=path, folder=str(folder), base=base, metadata=None,
                   config=load_config(base, {}),
                   tokenizer=load_tokenizer(str(folder) if with_tokens else base))  # fmt: skip


def _check_head(path: str, config: PreTrainedConfig, task: type[Task]) -> None:
    """Raise if the config of a model names a head for another task."""
    made_for = config.architectures or []
    head = task.auto_model.__name__.removeprefix("AutoModel")
    if (
        not TASKS[task.name].writes
        and made_for
        and not any(name.endswith(head) for name in made_for)
    ):
        raise HftuneError(
            f"{path}: {', '.join(made_for)} has no trained head for {task.name}",
            hint="fine-tune it first: hftune train, with it as the model",
        )


@contextmanager
def _said_of(path: str) -> Iterator[None]:
    """Put the key and the name of the teacher into errors."""
    try:
        yield
    except HftuneError as error:
        message = error.message.removeprefix("model.path: ")
        message, hint = message if path in message else f"{path}: {message}", error.hint
        if not Path(path).exists() and "no such folder" not in message:
            said = message.removeprefix(f"{path}: ")
            message = f"{path}: there is no such folder; as a model of the Hub: {said}"
            hint = "a run that teaches must be finished first" + (f"; {hint}" if hint else "")
        raise HftuneError(f"{KEY}: {message}", hint=hint) from error


def load_teacher(teacher: NamedTeacher, task: Task, device: torch.device, *, eager: bool) -> Any:
    """Return a teacher's model, frozen and in evaluation mode.

    Args:
        teacher: The teacher.
        task: The student's.
        device: The device of the model.
        eager: Whether the loss needs its attention weights.

    Raises:
        HftuneError: Its weights are missing or damaged.
    """
    with _said_of(teacher.path):
        if teacher.metadata is not None:
            register_tuners()
            model = load_finetuned(Path(teacher.folder), teacher.metadata, task.auto_model)
        elif teacher.base is not None:
            model, _ = load_language_model(teacher.folder)
        else:
            dtype = torch.float32 if device.type == "cpu" else "auto"
            model, missing = load_weights(task.auto_model, teacher.folder, dtype=dtype)
            if missing:
                raise HftuneError(
                    f"it has no trained head for {task.name}: it lacks {', '.join(missing[:3])}",
                    hint="fine-tune it first: hftune train, with it as the model",
                )
    quantized = teacher.metadata is not None and teacher.metadata.quantization is not None
    model = model if quantized else model.to(device)
    if eager:
        try:
            model.set_attn_implementation("eager")
        except (ValueError, AttributeError) as error:
            raise HftuneError(f"{KEY}: {teacher.path}: {first_line(error)}") from error
    return model.requires_grad_(False).eval()
