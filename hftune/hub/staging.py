# SPDX-License-Identifier: Apache-2.0
"""Collect the files of a run that a push sends: allowed names only, cleaned, in one folder."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hftune.core.errors import HftuneError
from hftune.hub.leaks import find_leak, known_secrets
from hftune.hub.model_card import card_for_hub
from hftune.hub.sanitize import clean_json, clean_recipe, public_base
from hftune.methods import method_row
from hftune.methods.probe.saved_probe import PROBE_CONFIG, PROBE_FILE, archive_text
from hftune.models.save import METADATA_FILE, ModelMetadata

CARD, RECIPE, METRICS = "README.md", "recipe.yaml", "metrics.json"
WEIGHTS = (PROBE_FILE, "adapter_model.safetensors", "model.safetensors", "model-*-of-*.safetensors")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
SENTENCE_PIECES = ("*.model", "*.spm")  # binary, but paths in them would be legible

#: Files of ``model/`` that may leave. All others stay, pickles above all.
MODEL_FILES = (
    CARD, METADATA_FILE, *WEIGHTS, *VOCABULARIES,
    "model.safetensors.index.json", "config.json", "generation_config.json",
    "adapter_config.json", PROBE_CONFIG, "tokenizer_config.json", "special_tokens_map.json",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm",
    "chat_template.jinja", "additional_chat_templates/*.jinja",
    "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
#: Files of the run folder that are sent too.
RUN_FILES = (RECIPE, METRICS)


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A folder with the files that a push sends, and no others.

    Attributes:
        folder: The folder.
        sizes: Size in bytes by name in the repository.
        left_out: Names of the run's files that are not sent.
        metadata: The metadata that are sent.
        adapter: Whether the weights are an adapter.
    """

    folder: Path
    sizes: dict[str, int]
    left_out: list[str]
    metadata: ModelMetadata
    adapter: bool

    @property
    def weights(self) -> set[str]:
        """The names of the files with weights."""
        return {name for name in self.sizes if is_weights(name)}


def is_weights(name: str) -> bool:
    """Tell whether ``from_pretrained`` may load weights from a file of this name.

    Example:
        >>> is_weights("model-00001-of-00002.safetensors"), is_weights("config.json")
        (True, False)
    """
    pickled = fnmatch(name, "pytorch_model*.bin") or name == "adapter_model.bin"
    return pickled or any(fnmatch(name, pattern) for pattern in WEIGHTS)


def stage(
    model_folder: Path,
    metadata: ModelMetadata,
    into: Path,
    *,
    repo: str,
    revision: str | None = None,
    base: str | None = None,
) -> Staged:
    """Fill ``into`` with the files that a push sends; the run itself does not change.

    Weights are linked, text files are copied and cleaned.

    Args:
        model_folder: A run's ``model/``; recipe and metrics lie in its parent.
        metadata: Metadata of the folder.
        into: An empty folder.
        repo: The repository that receives the files.
        revision: Branch of the repository; None for the main branch.
        base: A Hub id that holds the base model's weights.

    Raises:
        HftuneError: An adapter's base is not on the Hub, or a file holds a token or a local path.
    """
    fitted = method_row(metadata.method).saves == "classifier"
    adapter = fitted or (model_folder / "adapter_config.json").exists()
    public = dataclasses.replace(
        metadata,
        base_model=public_base(metadata.base_model, adapter=adapter, named=base),
        base_revision=metadata.base_revision if base is None else None,
    )
    sources, left_out = _choose(model_folder)
    for name, source in sources.items():
        if name == CARD:
            written = source.read_text(encoding="utf-8")
            text: str | None = card_for_hub(
                written, metadata, base_model=public.base_model, repo=repo, revision=revision
            )
        else:
            text = _cleaned(name, source, public)
        _put(into / name, source, text)
    _check(into, sources, {
        "the home folder": Path.home(),
        "the run's folder": model_folder.parent,
        "the model's folder": model_folder,
        "the working folder": Path.cwd(),
        "the base model's folder": metadata.base_model,
    })  # fmt: skip
    return Staged(
        folder=into,
        sizes={name: source.stat().st_size for name, source in _walk(into)},
        left_out=left_out,
        metadata=public,
        adapter=adapter,
    )


def _put(target: Path, source: Path, text: str | None) -> None:
    """Link weights, write a cleaned text, and copy any other file."""
    target.parent.mkdir(exist_ok=True)
    if target.name.endswith(".safetensors"):
        target.symlink_to(source.absolute())
    elif text is not None:
        target.write_text(text, encoding="utf-8")
    else:
        shutil.copyfile(source, target)


def _walk(folder: Path) -> list[tuple[str, Path]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted((path.relative_to(folder).as_posix(), path) for path in files)


def _choose(model_folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the files that are sent, by name, and the names of the others."""
    sources: dict[str, Path] = {}
    left_out = []
    for name, path in _walk(model_folder):
        if any(fnmatch(name, pattern) for pattern in MODEL_FILES) and not path.is_symlink():
            sources[name] = path
        else:
            left_out.append(f"{model_folder.name}/{name}")
    run = model_folder.parent
    if model_folder.name == "model" and (run / RECIPE).is_file():
        sources |= {name: run / name for name in RUN_FILES if (run / name).is_file()}
        others = (item for item in sorted(run.iterdir()) if item.name not in sources)
        left_out += [
            f"{item.name}/" if item.is_dir() else item.name for item in others
            if item != model_folder
        ]  # fmt: skip
    return sources, left_out


def _cleaned(name: str, source: Path, public: ModelMetadata) -> str | None:
    """Return a text file's content for other machines; None for a file that needs no change."""
    if name == METADATA_FILE:
        return json.dumps(dataclasses.asdict(public), indent=2, ensure_ascii=False) + "\n"
    if name == RECIPE:
        return clean_recipe(source.read_text(encoding="utf-8"), public.base_model)
    if name in ("adapter_config.json", PROBE_CONFIG):
        text = source.read_text(encoding="utf-8")
        changes: dict[str, object] = {
            "base_model_name_or_path": public.base_model,
            "revision": public.base_revision,
        }
        if json.loads(text).get(
            "tokenizer_name_or_path"
        ):  # prompt tuning that was initialized with a text
            revision = {"revision": public.base_revision} if public.base_revision else None
            changes |= {"tokenizer_name_or_path": public.base_model, "tokenizer_kwargs": revision}
        return clean_json(text, **changes)
    if name in ("config.json", "tokenizer_config.json"):
        return clean_json(source.read_text(encoding="utf-8"))
    return None


def _check(folder: Path, sources: Mapping[str, Path], folders: Mapping[str, Path | str]) -> None:
    """Raise :class:`HftuneError` if a staged file gives something away or is no safetensors."""
    secrets = known_secrets(folders)
    for name, path in _walk(folder):
        sentence_pieces = any(fnmatch(name, pattern) for pattern in SENTENCE_PIECES)
        if name.endswith(".safetensors"):
            text = _header(sources[name])
        elif name == PROBE_FILE:
            text = archive_text(sources[name])
        elif sentence_pieces:
            text = path.read_bytes().decode("utf-8", errors="replace")
        else:
            text = path.read_text(encoding="utf-8")
        if leak := find_leak(text, secrets, vocabulary=sentence_pieces or name in VOCABULARIES):
            raise HftuneError(
                f"{sources[name]}: {leak}: it must not leave this machine",
                hint="take it out of that file and push again; nothing has been sent",
            )


def _header(path: Path) -> str:
    """Return the metadata and the names of tensors in a safetensors file, as JSON."""
    try:
        with safe_open(path, framework="np") as file:
            return json.dumps([file.metadata(), sorted(file.keys())])
    except SafetensorError as error:
        raise HftuneError(f"{path}: no safetensors file: {error}") from error
