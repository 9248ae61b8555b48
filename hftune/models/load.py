# SPDX-License-Identifier: Apache-2.0
"""Load models from the Hub, a folder or the demo models, and report mistakes before loading."""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from httpx2 import TransportError
from huggingface_hub import constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from hftune.core.errors import HftuneError, first_line
from hftune.models.adapter import (
    check_adapter_files,
    check_base,
    is_adapter,
    loaded_weights,
    put_adapter,
)
from hftune.models.demo_models import demo_model_path
from hftune.models.pooling import Pooling, pool_by_mean
from hftune.models.save import ModelMetadata, read_metadata

DEMO = "demo:"
#: Name of a pooling -> its switch in ``1_Pooling/config.json`` of sentence-transformers.
POOLING_MODES: dict[Pooling, str] = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}


def pretrained_path(path: str) -> str:
    """Return a Hub id unchanged, the folder of a demo model, or a checked local folder.

    Raises:
        HftuneError: The folder is missing, holds no model, or has only pickled weights.

    Example:
        >>> pretrained_path("FacebookAI/roberta-base")
        'FacebookAI/roberta-base'
        >>> pretrained_path("./no/such/folder")
        Traceback (most recent call last):
        hftune.core.errors.HftuneError: model.path: ./no/such/folder: no such folder
    """
    if path.startswith(DEMO):
        return str(demo_model_path(path.removeprefix(DEMO)))
    folder = Path(path)
    if not folder.exists():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise HftuneError(f"model.path: {path}: no such folder")
        return path
    if not (folder / "config.json").exists():
        raise HftuneError(f"model.path: {path}: no config.json in it", hint=_what_is_there(folder))
    if not list(folder.glob("*.safetensors")):
        pickles = [item.name for item in folder.glob("*.bin")]
        what = f"only pickled weights ({', '.join(pickles)})" if pickles else "no weights"
        raise HftuneError(
            f"model.path: {path}: {what}; hftune reads safetensors alone",
            hint="convert them: load with Transformers, then save_pretrained" if pickles else None,
        )
    return path


def _what_is_there(folder: Path) -> str | None:
    """Return a hint for a folder that holds a run, an adapter or a probe instead of a model."""
    if read_metadata(folder / "model") is not None:
        return f"it is a run; its model is {folder / 'model'}"
    metadata = read_metadata(folder)
    base = "its base model" if metadata is None else f"its base model, {metadata.base_model}"
    if is_adapter(folder):
        return (
            f"it is an adapter, which is not trained on: name {base}, or merge it first: "
            f"hftune export {folder} --output FOLDER"
        )
    if metadata is not None and metadata.probe is not None:
        return f"it is a {metadata.method}, which is fitted anew: name {base}"
    return None


def was_pooled_by_mean(location: str, revision: str | None = None) -> bool:
    """Tell whether a checkpoint of sentence-transformers pools by mean.

    Such a checkpoint does not use the pooler of its first position, even if it has one.
    """
    return bool(_sentence_pooling(location, revision).get(POOLING_MODES["mean"]))


def checkpoint_pooling(location: str, revision: str | None = None) -> Pooling | None:
    """Return the pooling of a checkpoint of sentence-transformers; None if unknown or combined."""
    said = _sentence_pooling(location, revision)
    chosen = [name for name, value in said.items() if name.startswith("pooling_mode_") and value]
    known = [name for name, key in POOLING_MODES.items() if chosen == [key]]
    return known[0] if known else None


def _sentence_pooling(location: str, revision: str | None) -> dict[str, object]:
    path = cached_file(
        location,
        "1_Pooling/config.json",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    said: dict[str, object] = {} if path is None else json.loads(Path(path).read_text("utf-8"))
    return said


def load_config(
    location: str, overrides: dict[str, object], revision: str | None = None
) -> PreTrainedConfig:
    """Return the model's config with the recipe's overrides.

    Raises:
        HftuneError: There is no such model, or an override names no field of its config.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(location, revision=revision)
    except (OSError, ValueError) as error:
        raise HftuneError(
            f"model.path: {location}: {first_line(error)}", hint=_hub_hint(error)
        ) from error
    known = config.to_dict()
    unknown = [key for key in overrides if key not in known]
    if unknown:
        raise HftuneError(
            f"model.config: {type(config).__name__} has no {', '.join(unknown)}",
            hint=f"fields: {', '.join(sorted(known))}",
        )
    for key, value in overrides.items():
        setattr(config, key, value)
    return config


def load_processor(auto_processor: Any, location: str, revision: str | None = None) -> Any:
    """Return a processor: a tokenizer, an image processor or a feature extractor.

    Args:
        auto_processor: The class that loads it, such as ``AutoTokenizer``.
        location: Hub id or folder of the model.
        revision: Branch, tag or commit on the Hub.

    Raises:
        HftuneError: The model has no such processor.
    """
    try:
        return auto_processor.from_pretrained(location, revision=revision)
    except (OSError, ValueError) as error:
        word = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", auto_processor.__name__.removeprefix("Auto"))
        raise HftuneError(
            f"{location}: no {word.lower()}: {first_line(error)}", hint=_hub_hint(error)
        ) from error


def load_tokenizer(location: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer; see :func:`load_processor`."""
    tokenizer: PreTrainedTokenizerBase = load_processor(AutoTokenizer, location, revision)
    return tokenizer


def quantization_config(fields: dict[str, Any] | None) -> BitsAndBytesConfig | None:
    """Return the quantization config of a base model; None for no fields.

    Raises:
        HftuneError: ``BitsAndBytesConfig`` refuses the fields.

    Example:
        >>> quantization_config({"load_in_8bit": True}).load_in_8bit
        True
        >>> quantization_config(None)
    """
    if fields is None:
        return None
    try:
        return BitsAndBytesConfig(**fields)
    except (ValueError, TypeError, ImportError) as error:
        raise HftuneError(f"model.quantization: {error}") from error


def load_weights(auto_model: Any, location: str, **options: object) -> tuple[Any, list[str]]:
    """Return a pretrained model and the names of the parameters that its checkpoint lacks.

    A head of another size, for other labels, counts as missing.

    Args:
        auto_model: The ``AutoModelFor...`` class.
        location: Result of :func:`pretrained_path`.
        options: Arguments of ``from_pretrained``.

    Raises:
        HftuneError: There are no safetensors weights that fit.
    """
    # Otherwise Transformers asks a service to convert pickled weights in a public pull request.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # no warning about the new head, which is intended
    try:
        model, report = auto_model.from_pretrained(
            location,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except (SafetensorError, OSError, ValueError, ImportError, RuntimeError) as error:
        raise _not_loaded(location, error) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    resized = sorted(key for key, *_ in report["mismatched_keys"])
    trunk = [key for key in resized if key.startswith(f"{model.base_model_prefix}.")]
    if trunk:
        raise HftuneError(
            f"model.path: {location}: weights of another size: {', '.join(trunk[:3])}"
        )
    keep_unpacked(model)
    return model, sorted({*report["missing_keys"], *resized})


def _not_loaded(location: str, error: Exception) -> HftuneError:
    """Return an error with the reason why weights cannot be loaded, and a remedy."""
    if isinstance(error, SafetensorError):
        return HftuneError(
            f"model.path: {location}: its weights are damaged: {first_line(error)}",
            hint="copy or download them again",
        )
    if "cannot be loaded with `safetensors`" in str(error):
        return HftuneError(
            f"model.path: {location}: no safetensors weights; hftune reads safetensors alone",
            hint="take a revision that has them (model.revision), or convert them: load with "
            "Transformers, then save_pretrained",
        )
    return HftuneError(f"model.path: {location}: {first_line(error)}", hint=_hub_hint(error))


def load_base(metadata: ModelMetadata, auto_model: Any) -> tuple[Any, list[str]]:
    """Return the base of a fine-tuned model, and the parameters that its checkpoint lacks.

    Args:
        metadata: Metadata of the fine-tuned model.
        auto_model: The ``AutoModelFor...`` class.
    """
    location = pretrained_path(metadata.base_model)
    config = load_config(location, metadata.config, metadata.base_revision)
    if metadata.label_names:
        config.id2label = dict(enumerate(metadata.label_names))
        config.label2id = {name: index for index, name in enumerate(metadata.label_names)}
    elif metadata.num_labels:
        config.num_labels = metadata.num_labels
    return load_weights(
        auto_model,
        location,
        dtype=torch.float32,
        config=config,
        revision=metadata.base_revision,
        quantization_config=quantization_config(metadata.quantization),
    )


def load_saved(folder: Path, metadata: ModelMetadata, auto_model: Any) -> Any:
    """Return a saved model on the device of its loading: the CPU, except for quantized weights.

    Args:
        folder: A run's ``model/``.
        metadata: Metadata of the folder.
        auto_model: The ``AutoModelFor...`` class.

    Raises:
        HftuneError: A file is missing or damaged, or the base is not the one that was trained on.
    """
    adapter = is_adapter(folder)
    if adapter:
        check_adapter_files(folder, metadata.adapter_sha256)
        model, missing = load_base(metadata, auto_model)
    else:
        model, missing = load_weights(auto_model, str(folder), dtype=torch.float32)
        if missing:
            raise HftuneError(
                f"{folder}: its weights are damaged: they lack {', '.join(missing[:3])}",
                hint="copy the folder again",
            )
    if metadata.classifier_pooling == "mean":
        pool_by_mean(model)
    if adapter:
        weights = loaded_weights(model, missing)
        check_base(folder, metadata.base_model, metadata.base_fingerprint, weights)
        model = put_adapter(model, str(folder))
    return model.eval()


def load_finetuned(folder: Path, metadata: ModelMetadata, auto_model: Any) -> Any:
    """Return a saved model in evaluation mode, on the first accelerator or the CPU.

    Args:
        folder: A run's ``model/``.
        metadata: Metadata of the folder.
        auto_model: The ``AutoModelFor...`` class.

    Raises:
        HftuneError: A file is missing or damaged, or the base is not the one that was trained on.
    """
    model = load_saved(folder, metadata, auto_model)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model if metadata.quantization else model.to(device)


def _hub_hint(error: BaseException | None) -> str | None:
    """Return a hint for an error of the Hub, which Transformers chains inside other errors."""
    while error is not None:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        unreached = isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError)
        if unreached and constants.is_offline_mode():
            return "HF_HUB_OFFLINE is set, and it is not in the cache"
        if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
            return "is it spelled right? a private or gated one needs `hf auth login` or HF_TOKEN"
        failed = isinstance(error, TransportError) or (status is not None and status >= 429)
        if failed or unreached:
            return f"the Hub at {constants.ENDPOINT} did not answer as it should: try again later"
        error = error.__cause__ or error.__context__
    return None


def keep_unpacked(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for a CPU.

    On processors with AVX512-BF16, bitsandbytes packs them at the first evaluation. Version 0.50
    unpacks them wrongly for a state dict, so every checkpoint would silently ruin the base.
    """
    layers: list[Any] = [part for part in model.modules() if type(part).__name__ == "Linear4bit"]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
