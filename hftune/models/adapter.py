# SPDX-License-Identifier: Apache-2.0
"""Load an adapter onto its base, and refuse damaged files, missing weights and other bases.

PEFT only warns about missing weights, and accepts any base whose shapes fit.
"""

import json
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn

from hftune.core.errors import HftuneError, first_line
from hftune.core.files import sha256_of
from hftune.models.fingerprint import NamedWeights, differing

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
COPY_AGAIN = "copy the folder again, or train the adapter again"


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter, possibly damaged, and not a whole model.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     before = is_adapter(Path(folder))
        ...     _ = (Path(folder) / ADAPTER_CONFIG).write_text("{}")
        ...     print(before, is_adapter(Path(folder)))
        False True
    """
    if (folder / ADAPTER_CONFIG).exists():
        return True
    return (folder / ADAPTER_WEIGHTS).exists() and not (folder / "config.json").exists()


def check_adapter_files(folder: Path, sha256: str | None = None) -> None:
    """Check an adapter's files before its base is loaded.

    Args:
        folder: Local folder of the adapter.
        sha256: Hash of its weights, if known.

    Raises:
        HftuneError: A file is missing, damaged or not the one with this hash.
    """
    config, weights = folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS
    for path in (config, weights):
        if not path.is_file():
            raise HftuneError(f"{path}: missing; without it the adapter does not load",
                              hint=COPY_AGAIN)  # fmt: skip
    try:
        if not isinstance(json.loads(config.read_text(encoding="utf-8")), dict):
            raise ValueError("it holds no mapping")
    except ValueError as error:
        raise HftuneError(f"{config}: damaged: {first_line(error)}", hint=COPY_AGAIN) from error
    try:
        _stored_names(weights)
    except SafetensorError as error:
        raise HftuneError(f"{weights}: damaged: {first_line(error)}", hint=COPY_AGAIN) from error
    if sha256 is not None and sha256_of(weights) != sha256:
        raise HftuneError(
            f"{weights}: damaged, or not the file that hftune.json was written with",
            hint=f"{COPY_AGAIN}; if it was changed on purpose, take adapter_sha256 out of "
            "hftune.json",
        )


def put_adapter(model: nn.Module, place: str) -> PeftModel:
    """Return a base model with a saved adapter on it.

    Args:
        model: The base; PEFT changes it in place.
        place: Folder or Hub id of the adapter.

    Raises:
        HftuneError: The adapter does not fit the model, or one of its files is missing or damaged.
    """
    folder = Path(place)
    if folder.is_dir():
        check_adapter_files(folder)
    try:
        with warnings.catch_warnings():
            # _check_whole raises an error for missing weights of a local adapter.
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
            adapted: PeftModel = PeftModel.from_pretrained(model, place)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        shown = said[1] if "Error(s) in loading" in said[0] and len(said) > 1 else said[0]
        raise HftuneError(
            f"{place}: the adapter does not load: {shown.strip()}",
            hint="it is damaged, or made for another base model or by another version of PEFT",
        ) from error
    if folder.is_dir():
        _check_whole(adapted, folder)
    return adapted


def check_base(
    folder: Path | str, base: str, expected: Mapping[str, str] | None, weights: NamedWeights
) -> None:
    """Refuse a base that the adapter was not trained on; see :mod:`hftune.models.fingerprint`.

    Args:
        folder: Folder or Hub id of the adapter.
        base: Place of the base.
        expected: Fingerprint of the base that the adapter was trained on. None, for adapters that
            PEFT saved without hftune, accepts any base.
        weights: Weights from the checkpoint of the base.

    Raises:
        HftuneError: The base has other weights.
    """
    wrong = differing(expected, weights)
    if expected and wrong:
        raise HftuneError(
            f"{folder} was trained on other weights than {base} has: {len(wrong)} of "
            f"{len(expected)} compared weights differ, {wrong[0]} among them",
            hint=f"put back the {base} of that time, or train again on the one of now; "
            "model.revision holds a model of the Hub fast",
        )


def loaded_weights(model: nn.Module, missing: Collection[str]) -> NamedWeights:
    """Return name and weight of the parameters that a checkpoint contained.

    Args:
        model: The loaded model.
        missing: Names of parameters that the checkpoint lacked.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> [name for name, _ in loaded_weights(layer, ["bias"])]
        ['weight']
    """
    drawn = set(missing)
    return ((name, weight) for name, weight in model.named_parameters() if name not in drawn)


def _check_whole(adapted: PeftModel, folder: Path) -> None:
    """Raise :class:`HftuneError` if the file lacks weights of the adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice on saving
        due = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    lacking = sorted(set(due) - _stored_names(folder / ADAPTER_WEIGHTS))
    if lacking:
        raise HftuneError(
            f"{folder / ADAPTER_WEIGHTS}: damaged: it lacks {lacking[0]}"
            + (f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""),
            hint=COPY_AGAIN,
        )


def _stored_names(weights: Path) -> set[str]:
    with safe_open(weights, framework="np") as file:
        return set(file.keys())
