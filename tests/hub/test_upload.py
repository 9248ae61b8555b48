# SPDX-License-Identifier: Apache-2.0
"""The real client against a Hub on the loopback: permission, one commit, and every failure."""

import hashlib
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from hftune.core.errors import HftuneError, RunError
from hftune.hub.staging import Staged
from hftune.hub.upload import Target, check_fits, check_target, send
from hftune.models.save import ModelMetadata
from tests.hub.hub_server import DROPPED, FINE_TOKEN, OTHER_TOKEN, READ_TOKEN, HubServer

# The client hands a file over in a way that httpx2 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content:DeprecationWarning")

FILES = {"README.md": b"---\ntags: [a]\n---\n", "model.safetensors": b"\1" * 100}


@pytest.fixture
def staged(tmp_path: Path) -> Staged:
    return fill(tmp_path / "staged", FILES)


def fill(folder: Path, files: dict[str, bytes]) -> Staged:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    sizes = {name: len(content) for name, content in files.items()}
    metadata = ModelMetadata(task="text-generation", base_model="me/base")
    return Staged(folder=folder, sizes=sizes, left_out=[], metadata=metadata, adapter=False)


@pytest.mark.parametrize("public", [False, True])
def test_new_repository(hub: HubServer, staged: Staged, public: bool) -> None:
    target = check_target("me/new", public=public)
    assert target == Target(repo="me/new", private=not public)
    assert not hub.writes
    address = send(staged, target, "first")
    repository = hub.repositories["me/new"]
    assert repository.private is not public
    first = repository.branches["main"][-1]
    assert address == f"{hub.endpoint}/me/new/commit/{first.oid}"
    assert [commit.message for commit in repository.branches["main"]] == ["initial commit", "first"]
    assert hub.writes["commit"] == 1
    assert first.added == set(FILES)
    assert {name: first.files[name] for name in FILES} == FILES
    assert hashlib.sha256(FILES["model.safetensors"]).hexdigest() in hub.stored


def test_second_push_replaces_files_and_deletes_none(
    hub: HubServer, staged: Staged, tmp_path: Path
) -> None:
    send(staged, check_target("me/there"), "first")
    hub.repositories["me/there"].branches["main"][-1].files["notes.txt"] = b"mine"
    later = fill(tmp_path / "later", {**FILES, "model.safetensors": b"\2" * 100})
    target = check_target("me/there")
    assert target.exists
    assert {"notes.txt", *FILES} <= target.files
    check_fits(later, target)
    send(later, target, "second")
    commits = hub.repositories["me/there"].branches["main"]
    assert [commit.message for commit in commits[1:]] == ["first", "second"]
    assert commits[-1].added == {"model.safetensors"}  # what did not change is not sent again
    assert commits[-1].files["notes.txt"] == b"mine"
    assert commits[-1].files["model.safetensors"] == b"\2" * 100


def test_branch(hub: HubServer, staged: Staged) -> None:
    hub.add("me/there", {"old.txt": b"1"}, private=True)
    send(staged, check_target("me/there", revision="second"), "here")
    assert set(hub.files("me/there")) == {"old.txt"}
    assert set(hub.files("me/there", "second")) == {"old.txt", *FILES}
    assert check_target("me/there", revision="second").branch_exists


def test_somebody_else_was_faster(hub: HubServer, staged: Staged, tmp_path: Path) -> None:
    hub.add("me/there", {}, private=True)
    target = check_target("me/there")
    send(fill(tmp_path / "theirs", {"README.md": b"theirs"}), target, "theirs")
    with pytest.raises(RunError, match=r"somebody changed it meanwhile \(412"):
        send(staged, target, "mine")


@pytest.mark.parametrize(
    "other", ["adapter_model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"]
)
def test_other_weights_are_not_mixed_in(hub: HubServer, staged: Staged, other: str) -> None:
    hub.add("me/there", {other: b"1", "model.safetensors": b"2"}, private=True)
    with pytest.raises(HftuneError, match=f"other weights.*: {other}\n") as error:
        check_fits(staged, check_target("me/there"))
    assert "--revision" in str(error.value.hint)


REFUSED = [
    ("name", None, r"whose repository\? It reads user/name"),
    ("me/two--dashes", None, "Cannot have -- or .. in repo_id"),
    ("me/a b", None, "Repo id must use alphanumeric"),
    ("you/x", None, "belongs to me, who may not write to you"),
    ("readers/x", None, "me may only read in the organization readers"),
    ("me/x", READ_TOKEN, "the token of me may only read"),
    ("me/x", FINE_TOKEN, "fine-grained token of me may not write there"),
    ("me/x", OTHER_TOKEN, "belongs to other"),
    ("me/x", "hf_" + "u" * 34, r"does not accept the token \(401"),
    ("me/x", "", "no token for the Hub is known here"),
]


@pytest.mark.parametrize(("repo", "token", "message"), REFUSED)
def test_refused_before_anything_is_done(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, repo: str, token: str | None, message: str
) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HftuneError, match=message) as error:
        check_target(repo)
    assert error.value.exit_code == 2
    assert not hub.writes
    if token:
        assert token not in str(error.value)


@pytest.mark.parametrize("token", [None, FINE_TOKEN])
def test_organization(hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert check_target("team/x").repo == "team/x"


def test_public_repository_needs_the_word(hub: HubServer) -> None:
    hub.add("me/open", {})
    with pytest.raises(HftuneError, match="everybody can see it") as error:
        check_target("me/open")
    assert "--public" in str(error.value.hint)
    assert not check_target("me/open", public=True).private


def test_private_repository_stays_private(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("me/shut", {}, private=True)
    assert check_target("me/shut", public=True).private
    assert "me/shut is private and stays so" in capsys.readouterr().err


def test_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HftuneError, match="HF_HUB_OFFLINE is set") as error:
        check_target("me/x")
    assert error.value.hint == "unset HF_HUB_OFFLINE"
    assert not hub.requests


FAILURES = [
    (401, {}, "does not accept the token", "hf auth login"),
    (403, {}, "may not write there", "hf auth login"),
    (404, {}, "does not find it", "deleted or renamed"),
    (429, {}, "too many requests", "try again later"),
    (429, {"Retry_After": "900"}, "too many requests", "in 900 seconds"),
    (500, {}, "the Hub failed", "try again later"),
    (503, {}, "the Hub failed", "try again later"),
    (DROPPED, {}, "the connection to http://127.0.0.1", "not sent twice"),
]


@pytest.mark.parametrize("route", ["whoami", "create", "commit"])
@pytest.mark.parametrize(("status", "headers", "message", "hint"), FAILURES)
def test_failure_is_said_in_words(
    hub: HubServer, staged: Staged, route: str, status: int, headers: dict[str, str], message: str,
    hint: str,
) -> None:  # fmt: skip
    hub.fail(route, status, **headers)
    with pytest.raises(HftuneError, match=message) as error:
        send(staged, check_target("me/new"), "first")
    assert str(error.value).startswith("me/new: ")
    assert hint in str(error.value.hint)
    assert error.value.exit_code == (2 if route == "whoami" else 1)
    if status:
        assert f"({status}" in error.value.message
    if route == "commit":
        assert "it is still empty" in error.value.message
        assert set(hub.files("me/new")) == {".gitattributes"}
    else:
        assert not hub.repositories
    hub.forget()
    assert send(staged, check_target("me/new"), "again")  # nothing stands in the way afterwards


@pytest.mark.parametrize("route", ["whoami", "info", "create", "commit"])
@pytest.mark.parametrize("header", [{"Retry_After": "1"}, {"ratelimit": '"api";r=0;t=1'}])
def test_waits_as_long_as_the_hub_asks(
    hub: HubServer, staged: Staged, route: str, header: dict[str, str]
) -> None:
    hub.fail(route, 429, times=1, **header)
    start = time.monotonic()
    send(staged, check_target("me/new"), "first")
    assert time.monotonic() - start >= 1
    assert hub.writes["commit"] == (2 if route == "commit" else 1)
    assert len(hub.repositories["me/new"].branches["main"]) == 2


def test_upload_is_tried_again_by_the_client(hub: HubServer, staged: Staged) -> None:
    hub.fail("upload", 500, times=1)
    send(staged, check_target("me/new"), "first")
    assert hub.writes["upload"] == 2
    assert hub.files("me/new")["model.safetensors"] == FILES["model.safetensors"]
