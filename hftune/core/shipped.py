# SPDX-License-Identifier: Apache-2.0
"""Files that come with hftune: beside the package in a source tree, inside it in a wheel."""

from pathlib import Path

from hftune.core.errors import HftuneError

PACKAGE = Path(__file__).parents[1]


def shipped_folder(name: str) -> Path:
    """Return the folder ``accelerate_configs`` or ``recipes``.

    Example:
        >>> shipped_folder("recipes").name
        'recipes'
    """
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def accelerate_config(name: str) -> Path:
    """Return the file of a shipped Accelerate config, or the user's own file.

    Raises:
        HftuneError: There is no such config and no such file.

    Example:
        >>> accelerate_config("fsdp2").name
        'fsdp2.yaml'
    """
    if Path(name).is_file():
        return Path(name)
    folder = shipped_folder("accelerate_configs")
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise HftuneError(
            f"--accelerate: no config {name!r}", hint=f"known: {', '.join(known)}, or a file"
        )
    return folder / f"{name}.yaml"
