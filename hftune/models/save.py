# SPDX-License-Identifier: Apache-2.0
"""Save a finished model as a folder: weights, processor, model card and hftune's metadata."""

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
    """Facts that a saved model's other files lack; stored in ``hftune.json``.

    Attributes:
        task: The Hub's name of the task.
        base_model: ``model.path`` of the recipe.
        base_revision: Revision of the base on the Hub.
        method: Name of the method.
        label_names: Class names by id.
        num_labels: Number of outputs of a head without label names; 1 for regression.
        task_options: Further options of the task, such as thresholds.
        columns: Column name by role, in the training data.
        max_length: Largest number of tokens in a row.
        classifier_pooling: Pooling that the head of an encoder reads: ``cls`` or ``mean``.
        config: Fields of the base's config that the recipe overrode.
        quantization: Fields of ``BitsAndBytesConfig`` that the base was loaded with.
        tuner_module: Module whose import registers the adapter's type with PEFT, if it needs one.
        probe: Options of a probe; None for other methods.
        base_fingerprint: Fingerprint of the base of an adapter or a probe; see
            :mod:`hftune.models.fingerprint`.
        no_merge: Reason why an adapter cannot be merged, as a predicate of the method's name.
        adapter_sha256: Hash of the adapter's weights; None for a whole model.

    Example:
        >>> ModelMetadata(task="text-classification", base_model="demo:minilm").method
        'full'
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
    """Write the model to another folder, and rename that one so that no partial model remains.

    Args:
        folder: The folder of the model.
        model: A Transformers model, a PEFT model (only its adapter is saved), or a probe's head.
        processor: A tokenizer, an image processor or a feature extractor.
        metadata: Content of ``hftune.json``.
        card: The text of README.md.
        weights: State dict of the whole model, if ``model`` holds only this process's shards.
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
    """Return the metadata of a model folder, or None if hftune did not save it.

    Raises:
        HftuneError: The file is damaged.

    Example:
        >>> print(read_metadata(Path("no/such/folder")))
        None
    """
    path = folder / METADATA_FILE
    return read_metadata_file(path) if path.exists() else None


def read_metadata_file(path: Path) -> ModelMetadata:
    """Return the metadata in a file ``hftune.json``; see :func:`read_metadata`.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        ...     _ = file.write('{"task": "text-generation", "base_model": "gpt2"}')
        ...     file.flush()
        ...     print(read_metadata_file(Path(file.name)).base_model)
        gpt2
    """
    try:
        return ModelMetadata(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise HftuneError(
            f"{path}: damaged, or of another version of hftune: {first_line(error)}",
            hint="copy the folder again, or train with this version",
        ) from error
