# SPDX-License-Identifier: Apache-2.0
"""What gives a machine or a token away is found, and ordinary text is not."""

from pathlib import Path

import pytest

from hftune.hub.leaks import find_leak, known_secrets

TOKEN = "hf_" + "aB3" * 12
HOME, USERS, TEMPORARY = (f"/{folder}/me" for folder in ("home", "Users", "tmp"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"base: {HOME}/base", f"line 1: a local path, {HOME}/base"),
        (f'a\n{{"x": "{USERS}/x.csv"}}', f"line 2: a local path, {USERS}/x.csv"),
        (f"{TEMPORARY}/run-1", f"line 1: a local path, {TEMPORARY}/run-1"),
        ("file:///data/rows.csv", "line 1: a local path, file:///data/rows.csv"),
        ("~/models", "line 1: a local path, ~/models"),
        (r"C:\Users\me\model", r"line 1: a local path, C:\Users\me\model"),
        (r'"d:\\Users\\me"', r"line 1: a local path, d:\\Users\\me"),
        (f"login({TOKEN!r})", "line 1: what looks like a token"),
        (f"https://example.com{HOME}/page", None),
        ("the model in models/home/x", None),
        ("and/or, 1/2, a ~5 % gain", None),
        ("hf_transfer and hf_hub_download", None),
    ],
)
def test_patterns(text: str, found: str | None) -> None:
    assert find_leak(text, {}) == found


def test_vocabulary_may_hold_pieces_of_paths_but_no_token() -> None:
    assert find_leak(f'"{HOME}/": 5', {}, vocabulary=True) is None
    assert find_leak(TOKEN, {}, vocabulary=True) == "line 1: what looks like a token"


def test_known_folders_and_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "an-unusual-token")
    (tmp_path / "Jörg").mkdir()
    secrets = known_secrets({"the run's folder": tmp_path / "Jörg", "home": "/root", "top": "/"})
    assert "/root" not in secrets
    assert "/" not in secrets
    assert find_leak("token: an-unusual-token", secrets) == "line 1: the token in use"
    for text in (f"{tmp_path}/Jörg/model", f'"{tmp_path}/J\\u00f6rg"'):
        assert find_leak(text, secrets, vocabulary=True) == "line 1: the run's folder"
    assert find_leak(f"{tmp_path}/Jörgen", secrets, vocabulary=True) is None
