# SPDX-License-Identifier: Apache-2.0
"""What the verbs of the command line share."""

import os
import sys

import pytest
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from hftune import HftuneError
from hftune.cli import terminal
from hftune.cli.terminal import named_columns, say_next, verb


@pytest.mark.parametrize(("terminal", "rank"), [(True, "0"), (True, "1"), (False, "0")])
def test_transfers_show_progress_in_a_terminal_alone(
    terminal: bool, rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    was_disabled = are_progress_bars_disabled()
    try:
        verb("push")
        shown = terminal and rank == "0"
        assert are_progress_bars_disabled() != shown
        assert ("HF_HUB_DISABLE_PROGRESS_BARS" in os.environ) != shown
    finally:
        (disable_progress_bars if was_disabled else enable_progress_bars)()
        os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)


def test_next_command_is_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    say_next("train", "my rows.yaml", "data.columns={text: body}")
    assert capsys.readouterr().err == (
        "next:  hftune train 'my rows.yaml' 'data.columns={text: body}'\n"
    )


def test_named_columns() -> None:
    assert named_columns(["label=team", "text=a=b"]) == {"label": "team", "text": "a=b"}
    with pytest.raises(HftuneError, match="'label=': expected ROLE=COLUMN"):
        named_columns(["label="])


@pytest.mark.parametrize(("rank", "waits"), [("0", False), ("1", True)])
def test_the_first_process_speaks_first(
    rank: str,
    waits: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", rank)
    slept: list[float] = []
    monkeypatch.setattr(terminal.time, "sleep", slept.append)
    with pytest.raises(SystemExit) as end, terminal.plain_errors():
        raise HftuneError("no such file: a.csv", hint="did you mean b.csv?")
    assert slept == ([terminal.HEAD_START] if waits else [])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: no such file: a.csv\nhint: did you mean b.csv?\n"
