# SPDX-License-Identifier: Apache-2.0
"""Load a language model, or an adapter on its base, from a folder or the Hub, to generate text."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from hftune.core.errors import HftuneError
from hftune.models.adapter import (
    ADAPTER_CONFIG,
    check_adapter_files,
    check_base,
    is_adapter,
    put_adapter,
)
from hftune.models.load import DEMO, load_config, load_tokenizer, load_weights, pretrained_path
from hftune.models.save import METADATA_FILE, ModelMetadata, read_metadata, read_metadata_file

#: Auto classes whose models generate text.
WRITERS = (AutoModelForCausalLM, AutoModelForSeq2SeqLM)
#: Task types of PEFT for adapters that generate text.
WRITING_TASKS = (None, "CAUSAL_LM", "SEQ_2_SEQ_LM")


def load_language_model(path: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return a model in evaluation mode, on the first accelerator or the CPU, and its tokenizer.

    Args:
        path: Folder or Hub id of a model or an adapter, or a demo model.

    Raises:
        HftuneError: There is no such model, or it does not generate text.
    """
    adapter = _adapter_config(path)
    if adapter is not None and adapter.task_type not in WRITING_TASKS:
        raise HftuneError(
            f"{path}: an adapter for {adapter.task_type}, which writes no text",
            hint="hftune predict RUN DATA OUTPUT runs a classifier that hftune trained",
        )
    base = path if adapter is None else str(adapter.base_model_name_or_path)
    revision = None if adapter is None else adapter.revision
    model, location = _base_model(base, revision)
    if adapter is not None:
        metadata = _facts(path)
        expected = None if metadata is None else metadata.base_fingerprint
        check_base(path, base, expected, model.named_parameters())
    if adapter is None:
        return model, load_tokenizer(location)
    tokenizer = _adapter_tokenizer(path, location, revision)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))  # the adapter was trained with new tokens
    return put_adapter(model, path).eval(), tokenizer


def _base_model(path: str, revision: str | None) -> tuple[Any, str]:
    location = pretrained_path(path)
    config = load_config(location, {}, revision)
    made_for = ", ".join(config.architectures or ())
    if "Classification" in made_for:
        raise HftuneError(
            f"{path}: {made_for} writes no text",
            hint="hftune predict RUN DATA OUTPUT runs a classifier that hftune trained",
        )
    writer = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    accelerated = torch.accelerator.is_available()
    dtype = "auto" if accelerated else torch.float32  # half precision is slow on most CPUs
    model, missing = load_weights(writer, location, dtype=dtype, revision=revision)
    if missing:
        raise HftuneError(
            f"{path}: {made_for or 'the checkpoint'} is no language model; it lacks "
            f"{', '.join(missing[:3])}"
        )
    device = torch.accelerator.current_accelerator() if accelerated else "cpu"
    return model.to(device).eval(), location


def _adapter_config(path: str) -> PeftConfig | None:
    if path.startswith(DEMO):
        return None
    folder = Path(path)
    if folder.is_dir() and is_adapter(folder):
        check_adapter_files(folder)
    elif folder.is_dir() or _on_the_hub(path, ADAPTER_CONFIG) is None:
        return None
    try:
        config: PeftConfig = PeftConfig.from_pretrained(path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise HftuneError(
            f"{path}: the adapter does not load: its type or a field is unknown: {error}",
            hint="it may be of another version of PEFT, or of a package that adds types to it",
        ) from error
    return config


def _facts(path: str) -> ModelMetadata | None:
    """Return the metadata of an adapter; None if hftune did not train it."""
    folder = Path(path)
    if folder.is_dir():
        return read_metadata(folder)
    found = _on_the_hub(path, METADATA_FILE)
    return None if found is None else read_metadata_file(Path(found))


def _on_the_hub(path: str, name: str) -> str | None:
    """Return the local path of a file of a Hub repository; None if the repository lacks it."""
    try:
        found: str | None = cached_file(
            path,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:  # no such repository; loading the model raises the error
        return None
    return found


def _adapter_tokenizer(path: str, base: str, revision: str | None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the adapter, possibly with added tokens; else that of the base."""
    try:
        return load_tokenizer(path)
    except HftuneError:
        return load_tokenizer(base, revision)
