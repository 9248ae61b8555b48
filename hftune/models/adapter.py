# SPDX-License-Identifier: Apache-2.0
"""An adapter onto its base: whole files, all of its weights, and the base that it was trained on.

PEFT takes a file that lacks weights with a warning, and any base whose shapes fit.
"""

import json
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

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
    """Tell whether a folder holds an adapter, be it damaged, and no whole model."""
    if (folder / ADAPTER_CONFIG).exists():
        return True
    return (folder / ADAPTER_WEIGHTS).exists() and not (folder / "config.json").exists()


def check_adapter_files(folder: Path, sha256: str | None = None) -> None:
    """Look at an adapter's files before its base is loaded.

    Args:
        folder: On this machine.
        sha256: Of its weights, where it is known.

    Raises:
        HftuneError: One is missing or cannot be read.
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


def put_adapter(model: Any, place: str) -> PeftModel:
    """Return a base model with a saved adapter on it.

    Args:
        model: The base, which is changed.
        place: The adapter's folder, or its Hub id.

    Raises:
        HftuneError: It does not fit the model, or a file of the folder is missing or damaged.
    """
    folder = Path(place)
    if folder.is_dir():
        check_adapter_files(folder)
    try:
        with warnings.catch_warnings():
            # What a folder's file lacks is an error, below.
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
    """Refuse a base that an adapter was not trained on; see :mod:`hftune.models.fingerprint`.

    Args:
        folder: The adapter's, or its Hub id.
        base: Where the base came from.
        expected: What the adapter remembers of its base; None passes, as of a plain PEFT adapter.
        weights: What came from the base's checkpoint.

    Raises:
        HftuneError: It is another one.
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
    """Yield name and weight of what a checkpoint held.

    Args:
        model: As it was loaded.
        missing: Names of what the checkpoint lacked.
    """
    drawn = set(missing)
    return ((name, weight) for name, weight in model.named_parameters() if name not in drawn)


def _check_whole(adapted: PeftModel, folder: Path) -> None:
    """Raise :class:`HftuneError` if the file lacks what the same adapter would save."""
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
