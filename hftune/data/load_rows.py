# SPDX-License-Identifier: Apache-2.0
"""Rows from where the user keeps them, as one ``datasets.Dataset`` a part."""

from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict

from hftune.core.errors import HftuneError
from hftune.data.slices import is_slice, take
from hftune.data.source_files import is_saved_folder, read_files, read_folder, source_files
from hftune.data.stream import unreadable

DEMO = "demo:docstrings"


def load_splits(
    path: str | list[str],
    validation: str | list[str] | None = None,
    *,
    name: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    sample_by: str | None = None,
) -> tuple[Dataset, Dataset | None]:
    """Return the training rows and, where the source has them, the validation rows.

    Args:
        path: File, folder, glob, list of files, saved ``datasets`` folder, Hub id, or
            ``demo:docstrings``.
        validation: The same again, or the name of a split of ``path``, or slices of its splits.
        name: Configuration of a Hub data set.
        split: The split to train on, or slices: ``train[:10%]``. What has no splits is all
            ``train``.
        revision: Revision of a Hub data set.
        sample_by: What a row of a txt file is: ``line``, ``paragraph`` or ``document``.

    Raises:
        HftuneError: Something is missing, empty or broken; the message names file and place.
    """
    _check_local(path, name=name, revision=revision)
    source = _open(path, name, revision, sample_by)
    whole = isinstance(source, Dataset)
    splits: dict[str, Dataset] = {"train": source} if whole else dict(source)
    if whole and split is not None and not is_slice(split):
        raise _no_splits(path)
    rows = take(splits, split or "train", "data.split", path)
    if isinstance(validation, str) and (
        is_slice(validation) or (not whole and validation in splits)
    ):
        return rows, take(splits, validation, "data.validation", path)
    if validation is not None:
        return rows, load_split(validation)
    if split is None and "validation" in splits:
        return rows, take(splits, "validation", "data.validation", path)
    return rows, None


def load_split(path: str | list[str], split: str | None = None) -> Dataset:
    """Return the rows of one part; see :func:`load_splits`.

    Args:
        path: Where they are.
        split: The split to take where there are several; ``test`` if absent.
    """
    source = _open(path, None, None, None)
    if isinstance(source, DatasetDict):
        return take(source, split or "test", "split", path)
    return _not_empty(source, path)


def _local_kind(path: str | list[str]) -> str | None:
    """Describe the kind of a path in words; None for a Hub id."""
    if isinstance(path, list):
        return "a list of files"
    if path.startswith("demo:"):
        return "demo data"
    if Path(path).is_dir():
        return "a folder"
    return "a file" if source_files(path) else None


def _open(
    path: str | list[str], name: str | None, revision: str | None, sample_by: str | None
) -> Dataset | DatasetDict:
    if path == DEMO:
        from hftune.data.docstrings import conversation, docstring_rows, tagged_signature

        source: Dataset | DatasetDict = Dataset.from_list(
            [
                {**row, **tagged_signature(row["signature"]), "messages": conversation(row)}
                for row in docstring_rows()
            ]
        )
    elif isinstance(path, str) and path.startswith("demo:"):
        raise HftuneError(f"{path}: unknown demo data; known: {DEMO}")
    elif isinstance(path, str) and Path(path).is_dir() and is_saved_folder(Path(path)):
        source = _saved_folder(Path(path))
    elif isinstance(path, str) and Path(path).is_dir():
        return read_folder(Path(path), sample_by)
    elif files := source_files(path):
        return read_files(files, sample_by)
    elif isinstance(path, list):
        raise HftuneError("an empty list of files")
    else:
        source = _from_hub(path, name, revision)
    if sample_by is not None:
        raise HftuneError(f"data.sample_by: {path} is no txt file")
    return source


def _saved_folder(path: Path) -> Dataset | DatasetDict:
    try:
        return datasets.load_from_disk(str(path))
    except IndexError as error:  # datasets cannot read back a part that it saved without rows
        raise HftuneError(f"{path}: a part of it has no rows") from error
    except (FileNotFoundError, ValueError) as error:
        raise HftuneError(f"{path}: a damaged datasets folder: {error}") from error


def _from_hub(path: str, name: str | None, revision: str | None) -> DatasetDict:
    try:
        return datasets.load_dataset(path, name, revision=revision)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def _not_empty(rows: Dataset, path: object) -> Dataset:
    if len(rows) == 0:
        raise HftuneError(f"{path}: no rows")
    return rows


def _check_local(path: str | list[str], **hub_only: str | None) -> None:
    """Raise if a source that is not on the Hub is given a key that only the Hub knows."""
    for key, value in hub_only.items():
        if value is not None and (kind := _local_kind(path)):
            raise HftuneError(f"data.{key}: {path} is {kind}; only Hub data sets have one")


def _no_splits(path: str | list[str]) -> HftuneError:
    hint = "a slice can be taken: train[:10%]"
    return HftuneError(f"data.split: {path} has no splits", hint=hint)
