# SPDX-License-Identifier: Apache-2.0
"""Atomic checkpoints: write to a staging folder, add a manifest of hashes, then rename."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from hftune.core.console import warn
from hftune.core.errors import HftuneError
from hftune.core.files import atomic_write_json, sha256_of

MANIFEST = "manifest.json"
STAGING = ".staging"
NAME = re.compile(r"checkpoint-(\d+)")


def finalize_checkpoint(staged: Path, place: Path) -> None:
    """Give a staged checkpoint its manifest, sync it to disk, and rename it into place."""
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    manifest = {str(path.relative_to(staged)): sha256_of(path) for path in files}
    atomic_write_json(staged / MANIFEST, manifest)
    shutil.rmtree(place, ignore_errors=True)
    staged.rename(place)
    _sync(place.parent)


def find_damage(checkpoint: Path) -> str | None:
    """Describe the damage of a checkpoint; return None if every file matches the manifest."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "it has no readable manifest"
    for name, digest in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256_of(path) != digest:
            return f"{name} is damaged"
    return None


def latest_checkpoint(folder: Path) -> Path:
    """Return the newest whole checkpoint; warn about damaged ones and skip them.

    Raises:
        HftuneError: No checkpoint is whole.
    """
    found = [path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name)]
    for path in sorted(found, key=lambda path: -int(path.name.rpartition("-")[2])):
        problem = find_damage(path)
        if problem is None:
            return path
        warn(f"{path}: {problem}; passed over")
    raise HftuneError(
        f"{folder}: no whole checkpoint to resume from",
        hint="train again without --resume, into a fresh folder",
    )


def read_checkpoint_file(checkpoint: str, name: str) -> dict[str, Tensor]:
    """Return the tensors in a file of a checkpoint; none if the file is absent."""
    path = Path(checkpoint) / name
    return load_file(path) if path.is_file() else {}


class AtomicCheckpoints(Trainer):
    """A Trainer that writes a checkpoint to a staging folder and renames it once it is whole.

    It overrides ``_get_output_dir`` and ``_save_checkpoint``; a test checks their signatures.
    """

    _staging: Path | None = None

    def extra_checkpoint_files(self, model: nn.Module) -> dict[str, dict[str, Tensor]]:
        """Return the tensors that a checkpoint adds to the model's, by file and name."""
        return {}

    def _get_output_dir(self, trial: object) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        folder = Path(str(self.args.output_dir))
        name = f"checkpoint-{self.state.global_step}"
        staging, limit = folder / STAGING, self.args.save_total_limit
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging, self.args.save_total_limit = staging, None
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        finally:
            self._staging, self.args.save_total_limit = None, limit
        if self.state.best_model_checkpoint == str(staging / name):
            self.state.best_model_checkpoint = str(folder / name)
        if self.args.should_save:
            self.state.save_to_json(str(staging / name / "trainer_state.json"))
            for file, state in self.extra_checkpoint_files(model).items():
                if state:
                    whole = {key: value.contiguous() for key, value in state.items()}
                    save_file(whole, staging / name / file)
            finalize_checkpoint(staging / name, folder / name)
            staging.rmdir()
            rotate_checkpoints(
                output_dir=str(folder),
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
        self.accelerator.wait_for_everyone()


class RelocateBestCheckpoint(TrainerCallback):
    """Finds the best checkpoint of a resumed run in the present run folder.

    The state stores a path, which is wrong after a move of the folder or of the working directory.
    The step number, which it stores too, stays right.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Point the state to the best checkpoint in the present folder."""
        if state.best_global_step:
            best = Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(best) if best.is_dir() else None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
