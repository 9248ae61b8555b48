# SPDX-License-Identifier: Apache-2.0
"""Of several processes one says what is wrong, and never none."""

import time

import pytest

from hftune import terminal
from hftune.core.errors import HftuneError


@pytest.mark.parametrize(("rank", "waits"), [("0", False), ("1", True)])
def test_the_first_process_speaks_first(
    rank: str,
    waits: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(terminal, "HEAD_START", 0.2)
    start = time.monotonic()
    with pytest.raises(SystemExit) as end, terminal.plain_errors():
        raise HftuneError("no such file: a.csv", hint="did you mean b.csv?")
    assert (time.monotonic() - start >= 0.2) == waits
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: no such file: a.csv\nhint: did you mean b.csv?\n"
