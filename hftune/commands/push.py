# SPDX-License-Identifier: Apache-2.0
"""``hftune push``: check a finished run and upload it to the Hub in one commit."""

import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants
from rich.table import Table

from hftune.core.console import console, say, warn
from hftune.core.errors import RunError
from hftune.hub.reload_check import check_round_trip
from hftune.hub.staging import Staged, stage
from hftune.hub.upload import Target, check_fits, check_repo_id, check_target, send
from hftune.runs.run import Run, load

MESSAGE = "Upload with hftune"


def push(
    run: Run | str | Path,
    repo: str,
    *,
    base: str | None = None,
    revision: str | None = None,
    message: str = MESSAGE,
    public: bool = False,
    dry_run: bool = False,
) -> str | None:
    """Upload a finished run to the Hub after a fresh process has loaded its files.

    Args:
        run: The run, or its folder; it is not changed.
        repo: ``user/name``; created if it does not exist.
        base: Hub id of the model that an adapter was trained on, if the run loaded the model from a
            local folder.
        revision: A branch, created if it does not exist; the main branch if None.
        message: The message of the commit.
        public: Whether everybody may see the repository.
        dry_run: Do everything except the upload.

    Returns:
        The address of the commit; None for a dry run.

    Raises:
        HftuneError: The run is not finished, its files contain something private, or the token has
            no right to write there.
        RunError: A fresh process computes other logits than the run, or the upload failed.
    """
    run = _checked(run, repo, base)
    again = push_command(run.path, repo, base=base, revision=revision, public=public)
    with _unchanged(run, again):
        target = _target(repo, revision, public=public, dry_run=dry_run)
        address = _send(run, target, repo, base, None if dry_run else message)
    if address is not None:
        say(f"pushed: {address}")
    return address


def _checked(run: Run | str | Path, repo: str, base: str | None) -> Run:
    run = load(run) if not isinstance(run, Run) else run
    run.check_finished()
    check_repo_id(repo)
    if base is not None:
        check_repo_id(base, "--base")
    return Run(run.path)  # the files are uploaded; a model in memory may be in half precision


@contextmanager
def _unchanged(run: Run, again: str) -> Iterator[None]:
    """Add to an error that the run is unchanged, and the command to try again."""
    try:
        yield
    except RunError as error:
        hint = f"{error.hint}; then: {again}" if error.hint else f"again: {again}"
        raise RunError(f"{error.message}; {run.path} is as it was", hint=hint) from error


def _target(repo: str, revision: str | None, *, public: bool, dry_run: bool) -> Target:
    """Ask the Hub whether we may write to the repository; skip this in an offline dry run."""
    if not (dry_run and constants.is_offline_mode()):
        return check_target(repo, public=public, revision=revision)
    warn(f"HF_HUB_OFFLINE is set: nobody was asked whether {repo} may be written")
    return Target(repo=repo, private=not public, exists=None, revision=revision)


def _send(run: Run, target: Target, repo: str, base: str | None, message: str | None) -> str | None:
    """Upload the run and return the address of the commit; do not upload without a message."""
    with tempfile.TemporaryDirectory(prefix="hftune-push-") as folder:
        staged = stage(
            run.model_path,
            run.metadata,
            Path(folder),
            repo=repo,
            revision=target.revision,
            base=base,
        )
        check_fits(staged, target)
        _print(staged, target)
        _check_loads(run, staged, message is None and constants.is_offline_mode())
        if message is None:
            say("a dry run: nothing was sent")
            return None
        say(f"sending to {target.repo} ...")
        return send(staged, target, message)


def push_command(
    run: Path, repo: str, *, base: str | None = None, revision: str | None = None,
    public: bool = False,
) -> str:  # fmt: skip
    """Return the command that pushes a run.

    Example:
        >>> push_command(Path("runs/a"), "ada/tickets", public=True)
        'hftune push runs/a --repo ada/tickets --public'
    """
    command = ["hftune", "push", str(run), "--repo", repo]
    command += ["--base", base] if base else []
    command += ["--revision", revision] if revision else []
    return shlex.join([*command, *(["--public"] if public else [])])


def _print(staged: Staged, target: Target) -> None:
    table = Table(title=f"to {target}", title_justify="left", box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, size in staged.sizes.items():
        table.add_row(name, f"{size:,} bytes", "replaces" if name in target.files else "")
    console().print(table)
    if staged.left_out:
        say(f"left out: {', '.join(staged.left_out)}")
    if staged.adapter:
        say(f"base model: {staged.metadata.base_model}")


def _check_loads(run: Run, staged: Staged, offline: bool) -> None:
    """Compare logits in a fresh process; offline, where the base may be missing, only warn."""
    say("loading it in a fresh process ...")
    try:
        check_round_trip(
            staged.folder, staged.metadata, run.model, run.processor, adapter=staged.adapter
        )
    except RunError as error:
        if not offline:
            raise
        warn(error.message)
        return
    say("a fresh process gives the run's logits")
