# SPDX-License-Identifier: Apache-2.0
"""The cached schema is built anew when any source of hftune has changed."""

from pathlib import Path

import pytest

from hftune.recipe import json_schema as fields


def test_a_change_of_any_source_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("recipe/fields.py", "hub/clean.py", "optimizers/new.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("FIELDS = {}\n")
    monkeypatch.setattr(fields, "__file__", str(tmp_path / "recipe" / "fields.py"))
    seen = {fields._fingerprint()}
    assert fields._fingerprint() in seen
    for name in ("hub/clean.py", "optimizers/new.py"):
        (tmp_path / name).write_text("FIELDS = {1}\n")
        seen.add(fields._fingerprint())
    assert len(seen) == 3


def test_a_schema_that_was_read_while_a_source_changed_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "recipe" / "fields.py"
    source.parent.mkdir()
    source.write_text("FIELDS = {}\n")
    monkeypatch.setattr(fields, "__file__", str(source))
    monkeypatch.setenv("HFTUNE_CACHE", str(tmp_path / "cache"))

    def edited() -> dict[str, str]:
        source.write_text("FIELDS = {'more': 1}\n")
        return {"title": "half old, half new"}

    monkeypatch.setattr(fields, "build_schema", edited)
    assert fields.recipe_schema()["title"] == "half old, half new"
    assert not list((tmp_path / "cache" / "schema").iterdir())
    monkeypatch.setattr(fields, "build_schema", lambda: {"title": "new"})
    assert fields.recipe_schema() == {"title": "new"}
    monkeypatch.setattr(fields, "build_schema", lambda: {"title": "never asked for"})
    assert fields.recipe_schema() == {"title": "new"}
