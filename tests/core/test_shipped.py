# SPDX-License-Identifier: Apache-2.0
"""Shipped files are found in a source tree and in a wheel; unknown names list the known ones."""

import re
from pathlib import Path

import pytest

from hftune.core import shipped
from hftune.core.errors import HftuneError
from hftune.core.shipped import accelerate_config, shipped_folder

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["accelerate_configs", "recipes"])
def test_beside_the_package_in_a_source_tree(name: str) -> None:
    assert shipped_folder(name) == REPOSITORY / name


def test_inside_the_package_in_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "hftune"
    for folder in (package, package.parent):
        (folder / "accelerate_configs").mkdir(parents=True)
    monkeypatch.setattr(shipped, "PACKAGE", package)
    assert shipped_folder("accelerate_configs") == package / "accelerate_configs"


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_shipped_config_is_known_by_its_stem(path: Path) -> None:
    assert accelerate_config(path.stem).samefile(path)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.touch()
    assert accelerate_config(str(own)) == own


def test_unknown_name_lists_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known = ", ".join(sorted(p.stem for p in (REPOSITORY / "accelerate_configs").glob("*.yaml")))
    with pytest.raises(HftuneError, match=f"no config 'cpuu'\nknown: {re.escape(known)}, or a"):
        accelerate_config("cpuu")
    with pytest.raises(HftuneError, match=r"no config '\.\./pyproject'"):
        accelerate_config("../pyproject")
