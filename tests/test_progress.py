"""Progress: on stderr only, a bar on a terminal, a line now and then elsewhere, an estimate for long runs."""

from __future__ import annotations

import os
import pty
import sys
import time
from typing import TYPE_CHECKING

from tracetool import cli, engine

if TYPE_CHECKING:
    import pytest


def _progress(*, shown: bool = True) -> cli._Progress:
    return cli._Progress(shown=shown, color=False)  # noqa: SLF001 - it is the thing tested


def test_short_runs_into_a_pipe_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    report = _progress()
    report("found", 4, 1_000_000)
    for done in range(0, 1_000_001, 250_000):
        report("reading", done, 1_000_000)
    assert capsys.readouterr() == ("", "")


def test_long_runs_begin_with_an_estimate_and_a_way_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "available_cores", lambda: 4)
    _progress()("found", 256, 54_000_000_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "256 traces, about 9 min; --ranks looks at some\n"


def test_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    report = _progress()
    for second in range(0, 31, 5):
        now = float(second)
        report("reading", second, 30)
    assert capsys.readouterr().err.splitlines() == ["reading: 50 %", "reading: 100 %"]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    report = _progress(shown=False)
    report("found", 256, 10**15)
    report("reading", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        report = _progress()
        for done in (0, 1, 2):
            report("reading", done, 2)
        report("analyzing", 1, 1)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "reading" in shown
    assert "100%" in shown
    assert "\x1b[2K" in shown.rpartition("100%")[2]  # the last bar is wiped
