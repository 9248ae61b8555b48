# SPDX-License-Identifier: Apache-2.0
"""A saved probe: the fitted classifier without pickle, and the name of the trunk that it reads.

``probe.skops`` holds scikit-learn's objects; of their types only those of a probe are let in.
``probe.json`` says what turns texts into its features.
"""

import json
import zipfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from hftune.core.console import warn
from hftune.core.errors import HftuneError
from hftune.core.files import atomic_write_json, sha256_of
from hftune.core.task_rows import PROBLEM_TYPES
from hftune.models.adapter import check_base
from hftune.models.load import load_config, load_weights, pretrained_path
from hftune.models.pooling import Pooling, features
from hftune.models.save import ModelMetadata
from hftune.tasks.problem_types import make_problem_type

PROBE_FILE, PROBE_CONFIG = "probe.skops", "probe.json"
#: What skops does not let in by itself and a probe may hold; all are scikit-learn's own.
TRUSTED = (
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.feature_selection._mutual_info.mutual_info_classif",
    "sklearn.feature_selection._mutual_info.mutual_info_regression",
    "sklearn.feature_selection._univariate_selection.f_classif",
    "sklearn.feature_selection._univariate_selection.f_regression",
    "sklearn.multiclass._ConstantPredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
)
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile)
AGAIN = "copy the folder again, or fit the probe again"


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """The settings that turn a text into features.

    Attributes:
        base_model_name_or_path: The trunk, as PEFT's adapters name theirs.
        revision: Its revision on the Hub.
        config: Fields of its config that the recipe overrode.
        dtype: Of its weights.
        encoder_only: Whether only the encoder of an encoder-decoder is read.
        pooling: What becomes of a row's tokens.
        layer: Index of ``hidden_states``.
    """

    base_model_name_or_path: str
    revision: str | None
    config: dict[str, object]
    dtype: str
    encoder_only: bool
    pooling: Pooling
    layer: int


@dataclass(frozen=True, kw_only=True)
class FittedClassifier:
    """A fitted classifier and the settings of its features.

    Attributes:
        pipeline: scikit-learn's, fitted.
        reading: What turns a text into its features.
        problem_type: ``config.problem_type`` of the task.
        num_labels: Outputs of a row.
    """

    pipeline: Any
    reading: FeatureConfig
    problem_type: str
    num_labels: int

    def logits(self, X: NDArray[np.float32]) -> Tensor:
        """Return logits, or numbers for regression, shape ``(rows, labels)``.

        A label without a training row has the least probability.
        """
        kind = make_problem_type(self.problem_type)
        return kind.logits_of(self.pipeline, X, self.num_labels)

    def metadata(self) -> dict[str, object]:
        """Return the metadata for ``hftune.json`` and the model card."""
        import skops.io

        return {
            "pooling": self.reading.pooling,
            "layer": self.reading.layer,
            "encoder_only": self.reading.encoder_only,
            "classes": self._classes(),
            "trusted": skops.io.get_untrusted_types(data=skops.io.dumps(self.pipeline)),
        }

    def _classes(self) -> list[int]:
        """Return the ids of the labels that scikit-learn saw; none where it fitted numbers."""
        numbers = PROBLEM_TYPES[self.problem_type].numbers
        known: Any = () if numbers else self.pipeline.classes_
        return [int(index) for index in known]

    def save_pretrained(self, folder: Path, state_dict: None = None) -> None:
        """Write ``probe.skops`` and ``probe.json``."""
        import skops.io

        folder.mkdir(parents=True, exist_ok=True)
        skops.io.dump(self.pipeline, folder / PROBE_FILE)
        _check_types(folder / PROBE_FILE)
        written = {"sha256": sha256_of(folder / PROBE_FILE), "scikit-learn": _sklearn()}
        atomic_write_json(folder / PROBE_CONFIG, {**asdict(self.reading), **written})


class ProbedModel(nn.Module):
    """A frozen trunk with a fitted classifier, called as a Transformers classifier is.

    Args:
        trunk: Without a head.
        head: Fitted.
    """

    def __init__(self, trunk: Any, head: FittedClassifier) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.config: PreTrainedConfig = trunk.config

    @property
    def device(self) -> torch.device:
        """Where the trunk is."""
        device: torch.device = self.trunk.device
        return device

    def forward(self, **inputs: Any) -> SequenceClassifierOutput:
        """Return logits, shape ``(B, labels)``."""
        reading = self.head.reading
        with torch.inference_mode():
            read = features(self.trunk, inputs, reading.pooling, reading.layer)
        logits = self.head.logits(read.cpu().numpy()).float().to(self.device)
        return SequenceClassifierOutput(logits=logits)


def load_trunk(location: str, config: PreTrainedConfig, **options: Any) -> Any:
    """Return a pretrained model without a head, or the encoder of an encoder-decoder, frozen.

    Args:
        location: Hub id or folder.
        config: With the recipe's overrides.
        options: For ``from_pretrained``.

    Raises:
        HftuneError: The checkpoint lacks weights, so that features would be random.
    """
    model, missing = load_weights(AutoModel, location, config=config, **options)
    lacking = [name for name in missing if "pooler" not in name]
    if lacking:
        raise HftuneError(
            f"model.path: {location}: the checkpoint lacks {', '.join(lacking[:3])}, and a probe "
            "would read what no one has trained"
        )
    trunk = model.get_encoder() if config.is_encoder_decoder else model
    return trunk.requires_grad_(False).eval()


def load_probe(folder: Path, metadata: ModelMetadata) -> ProbedModel:
    """Return a saved probe on its trunk, on the first accelerator or the CPU.

    Args:
        folder: A run's ``model/``.
        metadata: What the folder remembers.

    Raises:
        HftuneError: A file is damaged or holds what no probe does, or the trunk is gone.
    """
    check_skops()
    reading, written = _read_config(folder)
    pipeline = _read_pipeline(folder / PROBE_FILE, written.get("sha256"))
    if written.get("scikit-learn") != _sklearn():
        warn(
            f"the probe was fitted by scikit-learn {written.get('scikit-learn')}, and "
            f"{_sklearn()} reads it"
        )
    location = pretrained_path(metadata.base_model)
    trunk = load_trunk(
        location,
        load_config(location, metadata.config, metadata.base_revision),
        dtype=getattr(torch, reading.dtype),
        revision=metadata.base_revision,
    )
    check_base(folder, metadata.base_model, metadata.base_fingerprint, trunk.named_parameters())
    head = FittedClassifier(
        pipeline=pipeline,
        reading=reading,
        problem_type=metadata.task_options["problem_type"],
        num_labels=metadata.num_labels or len(metadata.label_names),
    )
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return ProbedModel(trunk.to(device), head).eval()


def check_skops() -> None:
    """Raise :class:`HftuneError` where skops is not installed."""
    if find_spec("skops") is None:
        raise HftuneError("a probe needs skops", hint="pip install 'hftune[probe]'")


def _read_config(folder: Path) -> tuple[FeatureConfig, dict[str, Any]]:
    path = folder / PROBE_CONFIG
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        names = FeatureConfig.__dataclass_fields__
        return FeatureConfig(**{name: said.pop(name) for name in names}), said
    except DAMAGE as error:
        raise HftuneError(f"{path}: missing or damaged: {error!r}", hint=AGAIN) from error


def _read_pipeline(path: Path, sha256: str | None) -> Any:
    import skops.io

    if not path.is_file():
        raise HftuneError(f"{path}: missing", hint=AGAIN)
    if sha256_of(path) != sha256:
        raise HftuneError(
            f"{path}: damaged, or not the file that {PROBE_CONFIG} was written with",
            hint=AGAIN,
        )
    needed = _check_types(path)
    try:
        return skops.io.load(path, trusted=needed)
    except DAMAGE as error:
        raise HftuneError(f"{path}: cannot be read: {error}") from error


def _check_types(path: Path) -> list[str]:
    """Return the types of a file that skops wants to be told of.

    Raises:
        HftuneError: One is no part of a probe; nothing of the file has been made then.
    """
    import skops.io

    try:
        asked = skops.io.get_untrusted_types(file=path)
    except DAMAGE as error:
        raise HftuneError(f"{path}: no skops file: {error}") from error
    if foreign := sorted(set(asked) - set(TRUSTED)):
        raise HftuneError(
            f"{path}: it holds what no probe does, and it is not loaded: {', '.join(foreign)}"
        )
    return list(asked)


def archive_text(path: Path) -> str:
    """Return the text in a probe's archive: the names of its files and its description.

    Raises:
        HftuneError: The file is no archive of skops.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            return "\n".join([*names, archive.read("schema.json").decode("utf-8")])
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise HftuneError(f"{path}: no skops file: {error}") from error


def _sklearn() -> str:
    return version("scikit-learn")
