# SPDX-License-Identifier: Apache-2.0
"""Check access to a repository on the Hub, and send all files in one commit.

Errors of the Hub are raised with a plain message and a hint. Nothing here writes into a run.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from httpx2 import TransportError
from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, but not in __all__
    parse_ratelimit_headers,
    validate_repo_id,
)

from hftune.core.console import say
from hftune.core.errors import HftuneError, RunError, first_line
from hftune.hub.staging import Staged, is_weights

Answer = TypeVar("Answer")

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
LONGEST_WAIT = 120  # seconds; a longer wait that the Hub asks for is an error
TRIES = 4
HUB_ERRORS = (
    HfHubHTTPError, OfflineModeIsEnabled, LocalTokenNotFoundError, TransportError,
    ValueError,  # a card that the Hub refuses
    RuntimeError,  # a failed upload; its cause is chained
)  # fmt: skip
OWN_REFERENCES = "refs/"  # pull requests; create_branch never creates them
CONFLICTS = (409, 412)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A repository that this token may write to.

    Attributes:
        repo: ``user/name``.
        private: Whether others cannot see it.
        exists: Whether it exists already; None if the Hub was not asked.
        revision: The branch; None for the main branch.
        branch_exists: Whether the branch exists already.
        head: The commit that the branch points at.
        files: Names of the files in it.

    Example:
        >>> str(Target(repo="me/tickets", private=True))
        'me/tickets (private, new)'
    """

    repo: str
    private: bool
    exists: bool | None = False
    revision: str | None = None
    branch_exists: bool = False
    head: str | None = None
    files: frozenset[str] = frozenset()

    def __str__(self) -> str:
        words = ["private" if self.private else "public"]
        if self.exists is not None:
            words.append("there already" if self.exists else "new")
        if self.revision is not None:
            words.append(f"branch {self.revision}")
        return f"{self.repo} ({', '.join(words)})"


def check_repo_id(repo: str, key: str = "--repo") -> None:
    """Raise :class:`HftuneError` unless ``repo`` reads ``user/name`` and is valid on the Hub.

    Example:
        >>> check_repo_id("me/tickets")
        >>> check_repo_id("tickets")
        Traceback (most recent call last):
        hftune.core.errors.HftuneError: --repo: tickets: whose repository? It reads user/name
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HftuneError(f"{key}: {first_line(error)}") from None
    if "/" not in repo:
        raise HftuneError(f"{key}: {repo}: whose repository? It reads user/name")


def check_target(repo: str, *, public: bool = False, revision: str | None = None) -> Target:
    """Ask the Hub whether this token may push to a repository; nothing is changed.

    Args:
        repo: ``user/name``.
        public: Whether everybody may see it.
        revision: The branch; None for the main branch.

    Raises:
        HftuneError: The token may not push, the id is malformed, the repository is public and
            ``public`` is not set, or the Hub cannot be asked.
    """
    check_repo_id(repo)
    if constants.is_offline_mode():
        raise HftuneError(
            "HF_HUB_OFFLINE is set, and a push needs the Hub", hint="unset HF_HUB_OFFLINE"
        )
    api = HfApi()
    try:
        _check_namespace(repo, _patiently(api.whoami))
        return _look(api, repo, public, revision)
    except HUB_ERRORS as error:
        raise _explained(error, repo, HftuneError) from error


def _check_namespace(repo: str, user: dict[str, Any]) -> None:
    """Check that the token's role and the user's organizations allow to write to the repository."""
    owner, name = repo.partition("/")[0], user["name"]
    token = user.get("auth", {}).get("accessToken", {})
    organizations = {org["name"]: org.get("roleInOrg") for org in user.get("orgs", ())}
    if owner != name and owner not in organizations:
        raise HftuneError(
            f"{repo}: the token belongs to {name}, who may not write to {owner}",
            hint=f"may write to: {', '.join([name, *organizations])}",
        )
    if organizations.get(owner) == "read":
        raise HftuneError(f"{repo}: {name} may only read in the organization {owner}")
    if token.get("role") == "read":
        raise HftuneError(f"{repo}: the token of {name} may only read", hint=LOG_IN)
    if token.get("role") == "fineGrained":
        scopes = token.get("fineGrained", {}).get("scoped", ())
        writable = {
            scope["entity"].get("name") for scope in scopes if "repo.write" in scope["permissions"]
        }
        if not writable & {owner, repo}:
            raise HftuneError(
                f"{repo}: the fine-grained token of {name} may not write there",
                hint="give it write access to the repositories of " + owner,
            )


def _look(api: HfApi, repo: str, public: bool, revision: str | None) -> Target:
    """Return the repository's present state, and refuse to push to a public one unasked."""
    try:
        info = _patiently(lambda: api.model_info(repo))
    except RepositoryNotFoundError:
        return Target(repo=repo, private=not public, revision=revision)
    if not info.private and not public:
        raise HftuneError(
            f"{repo} is there already, and everybody can see it",
            hint="say so with --public (training.hub_private_repo: false), or name another",
        )
    if info.private and public:
        say(f"{repo} is private and stays so; its settings on the Hub can change that")
    branch_exists = True
    if revision is not None:
        try:
            info = _patiently(lambda: api.model_info(repo, revision=revision))
        except RevisionNotFoundError:
            branch_exists = False  # create_branch will copy the main branch
    return Target(
        repo=repo,
        private=bool(info.private),
        exists=True,
        revision=revision,
        branch_exists=branch_exists,
        head=info.sha if branch_exists else None,
        files=frozenset(file.rfilename for file in info.siblings or ()),
    )


def check_fits(staged: Staged, target: Target) -> None:
    """Raise :class:`HftuneError` if the repository holds weights under other names.

    A push adds and replaces files and deletes none. The other weights would stay, and
    ``from_pretrained`` would find both.
    """
    others = sorted(name for name in target.files if is_weights(name) and name not in staged.sizes)
    if others:
        raise HftuneError(
            f"{target.repo} holds other weights, which loading would mix with these: "
            + ", ".join(others),
            hint="push to another repository or --revision, or delete those files there first",
        )


def send(staged: Staged, target: Target, message: str) -> str:
    """Create the repository if it is new, and add all files in one commit.

    Returns:
        The address of the commit.

    Raises:
        RunError: The push failed; the message tells the state on the Hub.
    """
    api = HfApi()
    step = "the repository could not be made"
    try:
        if not target.exists:
            _patiently(lambda: api.create_repo(target.repo, private=target.private))
        step = "the branch could not be made"
        branch = target.revision
        if branch and not target.branch_exists and not branch.startswith(OWN_REFERENCES):
            _patiently(lambda: api.create_branch(target.repo, branch=branch))
        step = "the files did not arrive" + ("" if target.exists else ", and it is still empty")
        commit = _patiently(
            lambda: api.create_commit(
                target.repo,
                [CommitOperationAdd(name, staged.folder / name) for name in staged.sizes],
                commit_message=message,
                revision=target.revision,
                parent_commit=target.head,
            )
        )
    except HUB_ERRORS as error:
        raise _explained(error, f"{target.repo}: {step}", RunError) from error
    return commit.commit_url


def _patiently(call: Callable[[], Answer]) -> Answer:
    """Call a function; if the Hub asks to wait (status 429), wait and call it again.

    The Hub's client does the same for uploads, but not for its other requests.
    """
    for _ in range(TRIES - 1):
        try:
            return call()
        except HfHubHTTPError as error:
            seconds = _asked_to_wait(error)
            if seconds is None or seconds > LONGEST_WAIT:
                raise
            say(f"the Hub asks to wait {seconds} s")
            time.sleep(seconds)
    return call()


def _asked_to_wait(error: HfHubHTTPError) -> int | None:
    if error.response is None or error.response.status_code != 429:
        return None
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    seconds = error.response.headers.get("Retry-After", "")
    return int(seconds) if seconds.isdigit() else None


def _explained(error: Exception, what: str, kind: type[HftuneError]) -> HftuneError:
    """Return a plain error for one of ``HUB_ERRORS``."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, HUB_ERRORS):
        return _explained(error.__cause__, what, kind)
    if isinstance(error, LocalTokenNotFoundError):
        return kind(f"{what}: no token for the Hub is known here", hint=LOG_IN)
    if isinstance(error, OfflineModeIsEnabled):
        return kind(f"{what}: HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE")
    if isinstance(error, HfHubHTTPError):
        return _explained_status(error, what, kind)
    if isinstance(error, TransportError):
        return kind(
            f"{what}: the connection to {constants.ENDPOINT} failed: {first_line(error)}",
            hint="try again; what has arrived is not sent twice",
        )
    return kind(f"{what}: {' '.join(str(error).split())}")


def _explained_status(error: HfHubHTTPError, what: str, kind: type[HftuneError]) -> HftuneError:
    status = 0 if error.response is None else error.response.status_code
    server = error.server_message or ""
    said = f" ({status}{': ' + server.splitlines()[0] if server else ''})"
    if status == 401:
        return kind(f"{what}: the Hub does not accept the token{said}", hint=LOG_IN)
    if status == 403:
        return kind(f"{what}: the token may not write there{said}", hint=LOG_IN)
    if status == 404:
        return kind(
            f"{what}: the Hub does not find it{said}",
            hint="was it deleted or renamed meanwhile, and may the token see it?",
        )
    if status in CONFLICTS:
        return kind(f"{what}: somebody changed it meanwhile{said}", hint="push again")
    if status == 429:
        wait = _asked_to_wait(error)
        when = "later" if wait is None else f"in {wait} seconds"
        return kind(f"{what}: too many requests{said}", hint=f"try again {when}")
    if status >= 500:
        return kind(f"{what}: the Hub failed{said}", hint="try again later")
    return kind(f"{what}: {first_line(error)}")
