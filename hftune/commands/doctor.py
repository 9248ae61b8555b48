# SPDX-License-Identifier: Apache-2.0
"""``hftune doctor``: check the machine, and print one line for each finding, with a remedy.

The command must work on a broken installation in order to report it. So this module imports no
heavy package at the top.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from hftune.core import cache
from hftune.core.console import number_of
from hftune.core.errors import HftuneError

GIB = 2**30
SCARCE_GIB = 2
HUB_SECONDS = 5
#: Extras for developers of hftune.
NOT_FOR_USERS = ("docs", "test", "all")
State = Literal["ok", "note", "warning", "broken"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of one check.

    Attributes:
        about: Subject of the check, such as a package.
        state: ``broken``: hftune cannot work. ``warning``: something may go wrong. ``note``:
            something optional is absent.
        verdict: The result, on one line.
        remedy: A remedy, if there is one.

    Example:
        >>> Finding(about="python", state="ok", verdict="3.12").remedy is None
        True
    """

    about: str
    state: State
    verdict: str
    remedy: str | None = None


def doctor(*, empty_cache: bool = False) -> list[Finding]:
    """Check versions, devices, extras, folders and the Hub.

    Args:
        empty_cache: Remove all cache entries that no process uses before the checks.

    Returns:
        The findings. hftune works unless one of them is ``broken``.
    """
    looks = [_emptied, *LOOKS] if empty_cache else LOOKS
    return [finding for look in looks for finding in look()]


def report(findings: list[Finding]) -> str:
    """Return the findings as text for people.

    Example:
        >>> print(report([Finding(about="torch", state="broken", verdict="not installed")]))
        broken  torch  not installed
        <BLANKLINE>
        broken: torch
    """
    width = max(len(finding.about) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<8}{finding.about:<{width}}  {finding.verdict}")
        if finding.remedy:
            lines.append(f"{'':<8}{'':<{width}}  -> {finding.remedy}")
    broken = [finding.about for finding in findings if finding.state == "broken"]
    lines += ["", f"broken: {', '.join(broken)}" if broken else "hftune can work here"]
    return "\n".join(lines)


def _python() -> Iterator[Finding]:
    yield Finding(
        about="python",
        state="ok",
        verdict=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    )


def _packages() -> Iterator[Finding]:
    """Compare the installed versions of required packages with the tested ones."""
    yield Finding(about="hftune", state="ok", verdict=version("hftune"))
    for requirement in _requirements(None):
        name, bounds = requirement.name, requirement.specifier
        remedy = f"pip install '{name}{bounds}'"
        installed = _installed(name)
        if installed is None:
            yield Finding(about=name, state="broken", verdict="not installed", remedy=remedy)
        elif installed in bounds:
            yield Finding(about=name, state="ok", verdict=installed)
        else:
            verdict = f"{installed} lies outside of what was tested, {bounds}"
            yield Finding(about=name, state="warning", verdict=verdict, remedy=remedy)


def _extras() -> Iterator[Finding]:
    """List the packages that each extra lacks."""
    for extra in metadata("hftune").get_all("Provides-Extra") or ():
        if extra in NOT_FOR_USERS:
            continue
        needed = _requirements(extra)
        lacking = [
            item.name for item in needed if (_installed(item.name) or "0") not in item.specifier
        ]
        about = f"extra {extra}"
        if lacking:
            verdict = f"lacks {', '.join(lacking)}"
            remedy = f"pip install 'hftune[{extra}]'"
            yield Finding(about=about, state="note", verdict=verdict, remedy=remedy)
        else:
            names = ", ".join(item.name for item in needed)
            yield Finding(about=about, state="ok", verdict=f"{names} installed")


def _imports() -> Iterator[Finding]:
    """Check that the imports of training work together."""
    try:
        import_module("hftune.commands.train")
    except Exception as error:  # whatever a broken installation raises
        yield Finding(
            about="imports",
            state="broken",
            verdict=_words(error),
            remedy="install the tested set into a fresh environment: "
            "pip install -c constraints.txt -e .",
        )
    else:
        yield Finding(about="imports", state="ok", verdict="all that training needs")


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # named by _imports, with its remedy
        yield Finding(about="devices", state="broken", verdict=_words(error))
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    yield Finding(
        about="cpu",
        state="ok",
        verdict=f"{torch.get_num_threads()} threads for torch on {os.cpu_count()} cores, "
        f"{memory:.0f} GiB of memory",
    )
    driver = _nvidia_driver()
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        bf16 = "bf16 and tf32" if native else "no bf16: single precision unless training.fp16: true"
        yield Finding(
            about=f"gpu {index}",
            state="ok",
            verdict=f"{torch.cuda.get_device_name(index)}, {total / GIB:.0f} GiB "
            f"({free / GIB:.0f} free), {bf16}, CUDA {torch.version.cuda}, driver {driver}",
        )
    if torch.backends.mps.is_available():
        yield Finding(about="mps", state="ok", verdict="Apple's GPU is used")
    elif not torch.cuda.is_available() and driver is not None:
        yield Finding(
            about="gpu",
            state="warning",
            verdict=f"driver {driver} is there, and torch {torch.__version__} sees no GPU",
            remedy="install a CUDA build of torch that this driver knows",
        )
    elif not torch.cuda.is_available():
        yield Finding(about="gpu", state="note", verdict="none: training runs on the CPU")


def _nvidia_driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def _kernels() -> Iterator[Finding]:
    """Try packages that can be importable and still not work."""
    if _installed("bitsandbytes") is not None:
        yield _tried("bitsandbytes", "4-bit weights work", _quantize)
    if _installed("flash-attn") is None:
        verdict = "not installed; attn_implementation: auto needs no package"
        yield Finding(about="flash-attn", state="note", verdict=verdict)
    else:
        yield _tried("flash-attn", "can be imported", lambda: import_module("flash_attn"))


def _quantize() -> None:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    quantize_4bit = import_module("bitsandbytes.functional").quantize_4bit
    quantize_4bit(torch.ones(64, 64, device=device))


def _tried(package: str, verdict: str, attempt: Callable[[], object]) -> Finding:
    try:
        attempt()
    except Exception as error:  # whatever its library raises
        remedy = f"pip install --force-reinstall {package}, or leave it out of recipes"
        return Finding(about=package, state="warning", verdict=_words(error), remedy=remedy)
    return Finding(about=package, state="ok", verdict=verdict)


def _folders() -> Iterator[Finding]:
    from huggingface_hub import constants

    try:
        root, limit = cache.cache_folder("schema").parent, cache.cache_limit()
    except HftuneError as error:
        yield Finding(about="cache", state="broken", verdict=error.message, remedy=error.hint)
    else:
        yield from _cache(root, limit)
        yield _space("disk of cache", root)
    hub = Path(constants.HF_HUB_CACHE)
    yield Finding(about="hub cache", state="ok", verdict=f"{hub}, {_size(hub)}")
    yield _space("disk here", Path.cwd())


def _cache(root: Path, limit: int) -> Iterator[Finding]:
    """Compare the size of the cache with its limit, and count its entries by kind."""
    found = cache.entries()
    total = sum(entry.size for entry in found)
    verdict = f"{root}, {total / GIB:.1f} GiB of at most {limit / GIB:,.6g}"
    yield Finding(about="cache", state="ok", verdict=verdict)
    for kind, content in cache.KINDS.items():
        if mine := [entry for entry in found if entry.kind == kind]:
            yield Finding(about=f"cache {kind}", state="ok", verdict=f"{content}: {_counted(mine)}")


def _emptied() -> Iterator[Finding]:
    gone, used = cache.empty()
    verdict = f"removed {_counted(gone)}"
    if used:
        words = "entry stays: a run uses it", "entries stay: a run uses them"
        verdict += f"; {number_of(len(used), *words)}"
    yield Finding(about="emptied cache", state="ok", verdict=verdict)


def _counted(found: list[cache.CacheEntry]) -> str:
    size = sum(entry.size for entry in found)
    return f"{number_of(len(found), 'entry', 'entries')}, {size / 2**20:,.1f} MiB"


def _size(folder: Path) -> str:
    files = (Path(top, name) for top, _, names in os.walk(folder) for name in names)
    total = sum(file.lstat().st_size for file in files)
    return f"{total / GIB:.1f} GiB"


def _space(about: str, folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / GIB
    verdict = f"{free:.0f} GiB free"
    if free >= SCARCE_GIB:
        return Finding(about=about, state="ok", verdict=verdict)
    remedy = "a run keeps two checkpoints: free some, or set training.output_dir and HFTUNE_CACHE"
    verdict = f"{free:.1f} GiB free"
    return Finding(about=about, state="warning", verdict=verdict, remedy=remedy)


def _hub() -> Iterator[Finding]:
    from huggingface_hub import constants, get_session, get_token

    about, place = "hub", constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        yield Finding(
            about=about,
            state="note",
            verdict="switched off: only what is cached, and demo models",
            remedy="unset HF_HUB_OFFLINE to reach it",
        )
    else:
        try:
            get_session().head(place, timeout=HUB_SECONDS)
        except Exception as error:  # whatever the network or a proxy raises
            yield Finding(
                about=about,
                state="note",
                verdict=f"{place} cannot be reached: {_words(error)}",
                remedy="set HF_HUB_OFFLINE=1 to save the waiting; demo models need no Hub",
            )
        else:
            yield Finding(about=about, state="ok", verdict=f"{place} answers")
    if get_token() is None:
        verdict, remedy = "none: public models and data only", "hf auth login, if you need others"
        yield Finding(about="hub token", state="note", verdict=verdict, remedy=remedy)
    else:
        yield Finding(about="hub token", state="ok", verdict="there is one")


def _requirements(extra: str | None) -> list[Requirement]:
    """Return the requirements in hftune's metadata: those of an extra, or the general ones."""
    found = [Requirement(text) for text in requires("hftune") or ()]
    always = [item for item in found if item.marker is None or item.marker.evaluate({"extra": ""})]
    if extra is None:
        return always
    applies = [item for item in found if item.marker and item.marker.evaluate({"extra": extra})]
    return [item for item in applies if item not in always]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _imports,
    _extras,
    _kernels,
    _devices,
    _folders,
    _hub,
)
