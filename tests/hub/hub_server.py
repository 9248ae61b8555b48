# SPDX-License-Identifier: Apache-2.0
"""A small Hub on this machine's loopback, for the real client.

It keeps repositories in memory, with branches, commits, owners and tokens, and answers the routes
that huggingface_hub, Transformers, PEFT and Datasets use. Any route can be told to fail.
"""

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

OWNER, TOKEN = "me", "hf_" + "w" * 34
READ_TOKEN, FINE_TOKEN, OTHER_TOKEN = ("hf_" + letter * 34 for letter in "rfo")
LFS_SUFFIXES = (".safetensors", ".bin", ".parquet")
DROPPED = 0

#: Name -> method and path. ``kind`` is models or datasets, ``repo`` is owner/name.
REPO = r"(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
FILES = r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)"
ROUTES = {
    "whoami": ("GET", r"/api/whoami-v2"),
    "create": ("POST", r"/api/repos/create"),
    "validate": ("POST", r"/api/validate-yaml"),
    "info": ("GET", rf"/api/{REPO}(?:/revision/(?P<revision>.+))?"),
    "tree": ("GET", rf"/api/{REPO}/tree/(?P<revision>[^/]+)/?(?P<path>.*)"),
    "paths": ("POST", rf"/api/{REPO}/paths-info/(?P<revision>[^/]+)"),
    "branch": ("POST", rf"/api/{REPO}/branch/(?P<revision>[^/]+)"),
    "preupload": ("POST", rf"/api/{REPO}/preupload/(?P<revision>.+)"),
    "commit": ("POST", rf"/api/{REPO}/commit/(?P<revision>.+)"),
    "batch": ("POST", rf"{FILES}\.git/info/lfs/objects/batch"),
    "upload": ("PUT", r"/lfs/(?P<oid>\w+)"),
    "verify": ("POST", r"/lfs/verify"),
    "resolve": ("GET|HEAD", rf"{FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
}
READING = {"whoami", "validate", "info", "tree", "paths", "resolve", "unknown"}


@dataclass
class Commit:
    """One commit: its files, all of them, and what it changed."""

    oid: str
    message: str
    files: dict[str, bytes]
    added: set[str] = field(default_factory=set)


@dataclass
class Repository:
    """Branch name to commits, oldest first."""

    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def find(self, revision: str | None) -> Commit | None:
        """Return the commit that a branch points at, or that has this id."""
        wanted = revision or "main"
        if wanted in self.branches:
            return self.branches[wanted][-1]
        every = (commit for commits in self.branches.values() for commit in commits)
        return next((commit for commit in every if commit.oid == wanted), None)


class HubServer:
    """A Hub with one user, ``me``, who is in the organization ``team`` and reads in ``readers``."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.failures: dict[str, list[Any]] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.daemon_threads = True
        self.server.hub = self  # type: ignore[attr-defined]
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> "HubServer":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Return the variables with which the client talks to this Hub, with an empty cache."""
        known = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return {**known, "HF_HUB_OFFLINE": "0", **({"HF_TOKEN": token} if token else {})}

    def add(self, name: str, files: dict[str, bytes], *, private: bool = False) -> Repository:
        """Put a repository there: ``owner/name``, or ``datasets/owner/name``."""
        repository = Repository(private=private)
        repository.branches["main"] = [Commit(_oid(name), "initial commit", dict(files))]
        self.repositories[name] = repository
        return repository

    def add_folder(self, name: str, folder: Path) -> Repository:
        """Put a repository there with the files of a folder."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        return self.add(name, files)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Return what a repository holds."""
        commit = self.repositories[name].find(revision)
        assert commit is not None
        return commit.files

    def fail(
        self, route: str, status: int, times: int = 10**6, **headers: str
    ) -> None:  # fmt: skip
        """Let a route answer with an error so many times; ``DROPPED`` cuts the connection."""
        self.failures[route] = [times, status, headers]

    def forget(self) -> None:
        """Let no route fail, and empty the log."""
        self.failures.clear()
        self.requests.clear()

    @property
    def writes(self) -> Counter[str]:
        """How often each route was called that changes something."""
        return Counter(route for route, _ in self.requests if route not in READING)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer any request."""
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        self.body = self._read()
        hub = self.hub = self.server.hub  # type: ignore[attr-defined]
        route, parts = _route(self.command, path)
        hub.requests.append((route, f"{self.command} {self.path}"))
        failure = hub.failures.get(route)
        if failure and failure[0] > 0:
            failure[0] -= 1
            return self._fail(*failure[1:])
        if route == "unknown":
            return self._answer({"error": "no such route"}, 404)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in (TOKEN, READ_TOKEN, FINE_TOKEN, OTHER_TOKEN):
            text = "Invalid credentials in Authorization header"
            return self._answer({"error": text}, 401, {"X-Error-Message": text})
        if "repo" in parts:
            return self._in_repository(route, parts, token)
        return getattr(self, route)(parts, token)

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _answer(
        self, content: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if not isinstance(content, bytes):
            self.send_header("Content-Type", "application/json")
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, status: int, headers: dict[str, str]) -> None:
        if status == DROPPED:
            self.close_connection = True
            self.connection.close()
            return
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        self._answer({"error": f"told to fail with {status}"}, status, named)

    def _in_repository(self, route: str, parts: dict[str, str], token: str) -> None:
        """Find the repository; those who may not see it hear that it is not there."""
        kind = parts.get("kind") or "models"
        name = parts["repo"] if kind == "models" else f"datasets/{parts['repo']}"
        repository = self.hub.repositories.get(name)
        owner = parts["repo"].split("/")[0]
        mine = owner in (OWNER, "team") and token in (TOKEN, READ_TOKEN, FINE_TOKEN)
        if repository is None or (repository.private and not mine):
            status = 404 if token else 401
            code = {"X-Error-Code": "RepoNotFound"}
            return self._answer({"error": "Repository not found"}, status, code)
        if route not in READING and not (mine and token != READ_TOKEN):
            return self._answer({"error": "you have no write access"}, 403)
        commit = repository.find(parts.get("revision"))
        if commit is None and route not in ("branch", "batch"):
            code = {"X-Error-Code": "RevisionNotFound"}
            return self._answer({"error": "Invalid rev id"}, 404, code)
        return getattr(self, route)(parts, repository, commit)

    def whoami(self, parts: dict[str, str], token: str) -> None:
        roles = {TOKEN: "write", READ_TOKEN: "read", FINE_TOKEN: "fineGrained"}
        scopes = [{"entity": {"type": "user", "name": OWNER}, "permissions": ["repo.content.read"]}]
        scopes += [{"entity": {"type": "org", "name": "team"}, "permissions": ["repo.write"]}]
        known = {"role": roles.get(token, "write"), "fineGrained": {"scoped": scopes}}
        self._answer({
            "type": "user",
            "name": "other" if token == OTHER_TOKEN else OWNER,
            "orgs": [{"name": "team", "roleInOrg": "write"},
                     {"name": "readers", "roleInOrg": "read"}],
            "auth": {"accessToken": known},
        })  # fmt: skip

    def create(self, parts: dict[str, str], token: str) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        if token != TOKEN:
            return self._answer({"error": "you may not create repositories there"}, 403)
        if name in self.hub.repositories:
            return self._answer({"error": "You already created this model repo"}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.add(name, {".gitattributes": b""}, private=private)
        return self._answer({"url": f"{self.hub.endpoint}/{name}", "name": name})

    def validate(self, parts: dict[str, str], token: str) -> None:
        self._answer({"errors": [], "warnings": []})

    def info(self, parts: dict[str, str], repository: Repository, commit: Commit) -> None:
        self._answer({
            "id": parts["repo"], "sha": commit.oid, "private": repository.private, "tags": [],
            "downloads": 0, "likes": 0, "gated": False, "disabled": False,
            "siblings": [{"rfilename": name} for name in commit.files],
        })  # fmt: skip

    def tree(self, parts: dict[str, str], repository: Repository, commit: Commit) -> None:
        folder = f"{parts['path']}/" if parts["path"] else ""
        if folder and not any(name.startswith(folder) for name in commit.files):
            return self._answer({"error": "Entry not found"}, 404, _MISSING)
        return self._answer([
            _described(name, content) for name, content in commit.files.items()
            if name.startswith(folder)
        ])  # fmt: skip

    def paths(self, parts: dict[str, str], repository: Repository, commit: Commit) -> None:
        asked = urllib.parse.parse_qs(self.body.decode()).get("paths")
        if asked is None:
            asked = json.loads(self.body)["paths"]
        self._answer([
            _described(name, commit.files[name]) for name in asked if name in commit.files
        ])  # fmt: skip

    def branch(self, parts: dict[str, str], repository: Repository, commit: Commit) -> None:
        repository.branches[parts["revision"]] = list(repository.branches["main"])
        self._answer({})

    def preupload(self, parts: dict[str, str], repository: Repository, commit: Commit) -> None:
        answers = []
        for asked in json.loads(self.body)["files"]:
            name = asked["path"]
            large = name.endswith(LFS_SUFFIXES)
            there = commit.files.get(name)
            oid = None if there is None else _described(name, there)["oid"]
            if there is not None and large:
                oid = hashlib.sha256(there).hexdigest()
            mode = "lfs" if large else "regular"
            answers += [{"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid}]
        self._answer({"files": answers})

    def commit(self, parts: dict[str, str], repository: Repository, commit: Commit) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, commit.oid):
            return self._answer({"error": "A commit has happened since"}, 412)
        files, added = dict(commit.files), set()
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            added.add(value["path"])
        new = Commit(_oid(commit.oid), header["summary"], files, added)
        repository.branches[parts["revision"]].append(new)
        address = f"{self.hub.endpoint}/{parts['repo']}/commit/{new.oid}"
        return self._answer({"success": True, "commitOid": new.oid, "commitUrl": address})

    def batch(self, parts: dict[str, str], repository: Repository, commit: Commit) -> None:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.endpoint}/lfs/{asked['oid']}", "header": {}}
            verify = {"href": f"{self.hub.endpoint}/lfs/verify", "header": {}}
            actions = {"upload": upload, "verify": verify}
            known = asked["oid"] in self.hub.stored
            objects.append({**asked, **({} if known else {"actions": actions})})
        self._answer({"transfer": "basic", "objects": objects})

    def upload(self, parts: dict[str, str], token: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == parts["oid"]
        self.hub.stored[parts["oid"]] = self.body
        self._answer({})

    def verify(self, parts: dict[str, str], token: str) -> None:
        self._answer({})

    def resolve(self, parts: dict[str, str], repository: Repository, commit: Commit) -> None:
        content = commit.files.get(parts["path"])
        if content is None:
            return self._answer({"error": "Entry not found"}, 404, _MISSING)
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"X-Repo-Commit": commit.oid, "ETag": tag, "Accept-Ranges": "bytes"}
        start = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if start is None:
            return self._answer(content, 200, headers)
        first = int(start[1])
        last = min(int(start[2] or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self._answer(content[first : last + 1], 206, headers)


_MISSING = {"X-Error-Code": "EntryNotFound"}


def _route(command: str, path: str) -> tuple[str, dict[str, str]]:
    """Return a request's route and the parts of its path."""
    for route, (methods, pattern) in ROUTES.items():
        found = re.fullmatch(pattern, path)
        if found and re.fullmatch(methods, command):
            return route, found.groupdict()
    return "unknown", {}


def _oid(seed: str) -> str:
    return hashlib.sha1(seed.encode()).hexdigest()


def _described(name: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {"type": "file", "path": name, "size": len(content), "oid": blob}
