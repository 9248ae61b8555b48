# SPDX-License-Identifier: Apache-2.0
"""The finished model as a folder: weights, tokenizer, model card, and what hftune must remember."""

import dataclasses
import json
import shutil
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from hftune.core.errors import HftuneError, first_line
from hftune.core.files import atomic_write, atomic_write_json, sha256_of
from hftune.models.adapter import ADAPTER_WEIGHTS

METADATA_FILE = "hftune.json"


class Savable(Protocol):
    """A processor of Transformers, of any kind."""

    def save_pretrained(self, save_directory: str | PathLike[str]) -> object:
        """Write the files that ``from_pretrained`` reads."""


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """What a saved model's own files do not tell; kept as ``hftune.json`` beside the weights.

    Attributes:
        task: The Hub's name of the task.
        base_model: Where the base came from, as the recipe says it.
        base_revision: Its revision on the Hub.
        method: What was trained.
        label_names: Class names by id.
        num_labels: Outputs of the head where they have no names; 1 for regression.
        task_options: More that the task must know again, such as thresholds.
        columns: Role to column name of the training data.
        max_length: Tokens a row may have.
        classifier_pooling: What the head of an encoder reads.
        config: Fields of the base's config that the recipe overrode.
        quantization: Fields of ``BitsAndBytesConfig`` that the base was loaded with.
        tuner_module: What must be imported before PEFT knows the adapter's type, if anything.
        probe: How a probe reads its base; None for what was trained by gradients.
        base_fingerprint: Some numbers of the base, where an adapter or a probe needs it; see
            :mod:`hftune.models.fingerprint`.
        no_merge: Why an adapter cannot be put into its base, to follow the method's name.
        adapter_sha256: Of the adapter's weights; None of a whole model.
    """

    task: str
    base_model: str
    base_revision: str | None = None
    method: str = "full"
    label_names: list[str] = field(default_factory=list)
    num_labels: int | None = None
    task_options: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    max_length: int | None = None
    classifier_pooling: str = "cls"
    config: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] | None = None
    tuner_module: str | None = None
    probe: dict[str, Any] | None = None
    base_fingerprint: dict[str, str] | None = None
    no_merge: str | None = None
    adapter_sha256: str | None = None


def save_model(
    folder: Path,
    model: Any,
    processor: Savable,
    metadata: ModelMetadata,
    card: str,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write the folder whole: beside its place first, then renamed over what was there.

    Args:
        folder: Where the model goes.
        model: A PEFT model, of which the adapter is saved, a Transformers model, or a probe's head.
        processor: Saved beside it: a tokenizer, an image processor or a feature extractor.
        metadata: What loading must know.
        card: The text of README.md.
        weights: State dict of the whole model where ``model`` holds only this process's shards.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial, state_dict=weights)
        processor.save_pretrained(partial)
        if (partial / ADAPTER_WEIGHTS).exists():
            metadata = dataclasses.replace(
                metadata, adapter_sha256=sha256_of(partial / ADAPTER_WEIGHTS)
            )
        atomic_write_json(partial / METADATA_FILE, dataclasses.asdict(metadata))
        atomic_write(partial / "README.md", card)
        if folder.exists():
            folder.replace(old)
        partial.replace(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.replace(folder)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def read_metadata(folder: Path) -> ModelMetadata | None:
    """Return what a folder remembers, or None when hftune did not save it.

    Raises:
        HftuneError: The file is damaged.
    """
    path = folder / METADATA_FILE
    return read_metadata_file(path) if path.exists() else None


def read_metadata_file(path: Path) -> ModelMetadata:
    """Return what ``hftune.json`` says; see :func:`read_metadata`."""
    try:
        return ModelMetadata(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise HftuneError(
            f"{path}: damaged, or of another version of hftune: {first_line(error)}",
            hint="copy the folder again, or train with this version",
        ) from error
